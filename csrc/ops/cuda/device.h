// Helpers of the CUDA operators: they convert tensors to a launcher's arguments and wrap its launch.
// Nothing here waits for the device.

#pragma once

#include "../../kernels/cuda/operators.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "../checks.h"
#include "engine.h"

namespace cyclip::cuda {

struct Argument {
  const Tensor& tensor;
  const char* name;
};

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "the CPU";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

// The dispatcher calls a CUDA operator if at least one tensor is on a GPU; the others may be elsewhere.
inline void check_same_device(std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  for (const Argument& argument : arguments) {
    STD_TORCH_CHECK(argument.tensor.device() == first.tensor.device(), argument.name, " must be on the device of ",
                    first.name, ", ", device_of(first.tensor), ", got ", device_of(argument.tensor),
                    "; move it with .to()");
  }
}

inline void check_label_devices(const Tensor& image_features, const std::optional<Tensor>& row_labels,
                                const std::optional<Tensor>& col_labels) {
  if (row_labels) check_same_device({{image_features, "image_features"}, {*row_labels, "row_labels"}});
  if (col_labels) check_same_device({{image_features, "image_features"}, {*col_labels, "col_labels"}});
}

// A tower's features, whose rows consist of consecutive elements. Any pitch is allowed, so a slice
// is not copied.
class Tower {
 public:
  explicit Tower(const Tensor& features)
      : tensor_(features.stride(1) == 1 ? features : torch::stable::contiguous(features)) {}

  operator Features() const {
    return {tensor_.const_data_ptr(), element_type(), tensor_.size(0), tensor_.size(1), tensor_.stride(0)};
  }

 private:
  ElementType element_type() const {
    switch (tensor_.scalar_type()) {
      case ScalarType::BFloat16:
        return ElementType::kBFloat16;
      case ScalarType::Half:
        return ElementType::kFloat16;
      case ScalarType::Double:
        return ElementType::kFloat64;
      default:  // check_features has excluded all other types
        return ElementType::kFloat32;
    }
  }

  Tensor tensor_;
};

// The features to multiply. If `allow_bf16`, float32 features are rounded to bfloat16, and so is
// their gradient, which is afterwards converted back to the dtype of the original features.
inline Tensor multiplied(const Tensor& features, bool allow_bf16) {
  const bool rounds = allow_bf16 && features.scalar_type() == ScalarType::Float;
  return rounds ? torch::stable::to(features, ScalarType::BFloat16) : features;
}

// One number of any dtype, converted on the device, because its value is not known on the host.
struct Scalar {
  Tensor tensor;  // owns `data`
  const double* data;

  Scalar(const Tensor& argument, const char* name) : tensor(checked(argument, name)) {
    data = tensor.const_data_ptr<double>();
  }

 private:
  static Tensor checked(const Tensor& argument, const char* name) {
    check_scalar(argument, name);
    return torch::stable::to(argument, ScalarType::Double);
  }
};

// Scratch memory of torch's caching allocator. Memory that is freed while kernels still use it is
// reused only by later work on the same stream.
class TorchWorkspace : public Workspace {
 public:
  explicit TorchWorkspace(const Tensor& features) : features_(features) {}

  void* allocate(int64_t bytes) override {
    blocks_.push_back(torch::stable::new_empty(features_, {bytes}, ScalarType::Byte));
    return blocks_.back().mutable_data_ptr();
  }

 private:
  const Tensor& features_;
  std::vector<Tensor> blocks_;
};

inline Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

inline int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

// Whether a device has no tensor cores for float64.
inline bool float64_is_slow(int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  return minor != 0 || major > 10;  // 8.0, 9.0 and 10.0 have them
}

// The context of one launcher call. Create it after the checks; it must outlive the call.
class Call {
 public:
  explicit Call(const Tensor& features, bool allow_tf32 = false)
      : features_(features),
        guard_(features.get_device_index()),
        workspace_(features),
        context_{workspace_, current_stream(features), allow_tf32} {
    context_.float64_is_slow = float64_is_slow(features.get_device_index());
    context_.hopper_blocks = chosen_engine(features.get_device_index()).hopper_blocks;
  }

  const Context& context() const { return context_; }

  // Allocates the memory of an output.
  template <typename E>
  Tensor empty(std::initializer_list<int64_t> shape) const {
    return torch::stable::new_empty(features_, shape, torch::headeronly::CppTypeToScalarType<E>::value);
  }

 private:
  const Tensor& features_;
  torch::stable::accelerator::DeviceGuard guard_;
  TorchWorkspace workspace_;
  Context context_;
};

// No dot products are stored for the backward pass on a GPU: recomputing them costs less than
// reading them.
inline Tensor no_dots(const Tensor& features) {
  const bool is_double = features.scalar_type() == ScalarType::Double;
  return torch::stable::new_empty(features, {0, 0}, is_double ? ScalarType::Double : ScalarType::Float);
}

// Memory for dL/d features, in their dtype. If the gradient is not required, it has no rows. Its
// data pointer is then null, and the launcher does not compute it.
inline Tensor empty_gradient(const Tensor& features, bool wanted = true) {
  return torch::stable::new_empty(features, {wanted ? features.size(0) : 0, features.size(1)});
}

}  // namespace cyclip::cuda
