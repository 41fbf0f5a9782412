// Retrieval for evaluation: ranks in both directions, and the nearest candidates.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"

namespace cyclip::cuda {

std::tuple<Tensor, Tensor> retrieval_ranks(const Tensor& image_features, const Tensor& text_features,
                                           const Tensor& image_labels, const Tensor& text_labels,
                                           bool allow_tf32) {
  check_feature_pair(image_features, text_features);
  check_same_device({{image_features, "image_features"},
                     {text_features, "text_features"},
                     {image_labels, "image_labels"},
                     {text_labels, "text_labels"}});
  const int64_t n = image_features.size(0), m = text_features.size(0);
  const Call call(image_features, allow_tf32);
  const Tower image(image_features), text(text_features);
  const Vector<int64_t> row_labels(image_labels, n, "image_labels");
  const Vector<int64_t> col_labels(text_labels, m, "text_labels");
  const Tensor row_rank = call.empty<int64_t>({n}), col_rank = call.empty<int64_t>({m});
  STD_CUDA_CHECK(
      launch_retrieval_ranks_forward({image, text, row_labels.data, col_labels.data,
                                      row_rank.mutable_data_ptr<int64_t>(), col_rank.mutable_data_ptr<int64_t>()},
                                     call.context()));
  return {row_rank, col_rank};
}

std::tuple<Tensor, Tensor> similarity_top_k(const Tensor& query_features, const Tensor& candidate_features,
                                            int64_t k, bool allow_tf32) {
  check_feature_pair(query_features, candidate_features, "query_features", "candidate_features");
  check_k(k, candidate_features);
  check_same_device({{query_features, "query_features"}, {candidate_features, "candidate_features"}});
  const int64_t n = query_features.size(0);
  const Call call(query_features, allow_tf32);
  const Tower query(query_features), candidate(candidate_features);
  const Tensor values = call.empty<double>({n, k}), indices = call.empty<int64_t>({n, k});
  STD_CUDA_CHECK(launch_similarity_top_k_forward(
      {query, candidate, k, values.mutable_data_ptr<double>(), indices.mutable_data_ptr<int64_t>()},
      call.context()));
  return {values, indices};
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CUDA, m) {
  m.impl("retrieval_ranks", TORCH_BOX(&retrieval_ranks));
  m.impl("similarity_top_k", TORCH_BOX(&similarity_top_k));
}

}  // namespace cyclip::cuda
