#include "row_norms.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "primitives.cuh"

namespace cyclip::cuda {

namespace {

constexpr double kEps = 1e-12;  // as in torch.nn.functional.normalize
constexpr int kLoadBytes = 16;
constexpr int kRowsPerBlock = 8;  // one warp each

template <typename T, int kItems>
struct alignas(kItems * sizeof(T)) Pack {
  T items[kItems];
};

__device__ inline double widen(double x) { return x; }
__device__ inline double widen(float x) { return x; }
__device__ inline double widen(__half x) { return __half2float(x); }
__device__ inline double widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Double, because the squares of float and bfloat16 leave the range of float long before the norm does.
template <typename T, int kItems>
__device__ double sum_of_squares(const Pack<T, kItems>& pack) {
  double sum = 0;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const double x = widen(pack.items[item]);
    sum += x * x;
  }
  return sum;
}

template <typename T, int kItems>
__global__ void __launch_bounds__(kRowsPerBlock* kWarpSize)
    row_norms_forward_kernel(const T* features, int64_t rows, int64_t d, int64_t pitch, Norm<T>* norms) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.y;
  if (row >= rows) return;  // a whole warp, so that the shuffles below stay complete
  const T* x = features + row * pitch;
  const auto* packs = reinterpret_cast<const Pack<T, kItems>*>(x);
  const int lane = threadIdx.x;
  const int64_t whole = d / kItems;

  double sum = 0;
  for (int64_t pack = lane; pack < whole; pack += kWarpSize) sum += sum_of_squares(packs[pack]);
  for (int64_t k = whole * kItems + lane; k < d; k += kWarpSize) sum += widen(x[k]) * widen(x[k]);
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);

  const double norm = sqrt(sum);
  if (lane == 0) norms[row] = static_cast<Norm<T>>(norm < kEps ? kEps : norm);
}

template <typename T, int kItems>
void launch(const T* features, int64_t rows, int64_t d, int64_t pitch, Norm<T>* norms, cudaStream_t stream) {
  const dim3 threads(kWarpSize, kRowsPerBlock);
  const dim3 blocks(static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock));
  row_norms_forward_kernel<T, kItems><<<blocks, threads, 0, stream>>>(features, rows, d, pitch, norms);
}

}  // namespace

template <typename T>
cudaError_t launch_row_norms_forward(const T* features, int64_t rows, int64_t d, int64_t pitch, Norm<T>* norms,
                                     cudaStream_t stream) {
  const auto address = reinterpret_cast<uintptr_t>(features);
  const auto pitch_bytes = static_cast<uint64_t>(pitch) * sizeof(T);
  if ((address | pitch_bytes) % kLoadBytes == 0) {
    launch<T, kLoadBytes / sizeof(T)>(features, rows, d, pitch, norms, stream);
  } else {
    launch<T, 1>(features, rows, d, pitch, norms, stream);
  }
  return cudaGetLastError();
}

#define CYCLIP_INSTANTIATE(T) \
  template cudaError_t launch_row_norms_forward<T>(const T*, int64_t, int64_t, int64_t, Norm<T>*, cudaStream_t);

CYCLIP_INSTANTIATE(float)
CYCLIP_INSTANTIATE(double)
CYCLIP_INSTANTIATE(__half)
CYCLIP_INSTANTIATE(__nv_bfloat16)

}  // namespace cyclip::cuda
