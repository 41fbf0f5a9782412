// The operators of torch.ops.cyclip_ext. Every backend implements these schemas. cyclip_ext/ops.py
// documents the operators and registers their derivatives.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(cyclip_ext, m) {
  m.def("cpu_isa() -> str");

  m.def("row_norms(Tensor features) -> Tensor");

  m.def(
      "pair_statistics(Tensor image_features, Tensor text_features, Tensor logit_scale, int offset=0, "
      "bool allow_tf32=False, bool allow_bf16=False, int keep_bytes=0, bool needs_hardest=True, "
      "Tensor? row_labels=None, Tensor? col_labels=None, bool same_are_positives=False) -> "
      "(Tensor row_lse, Tensor col_lse, Tensor positive, Tensor row_hardest, Tensor col_hardest, "
      "Tensor row_hardest_index, Tensor col_hardest_index, Tensor dots)");
  m.def(
      "pair_statistics_backward(Tensor image_features, Tensor text_features, Tensor logit_scale, int offset, "
      "Tensor row_lse, Tensor col_lse, Tensor row_hardest_index, Tensor col_hardest_index, Tensor dots, "
      "Tensor grad_row_lse, Tensor grad_col_lse, Tensor grad_positive, Tensor grad_row_hardest, "
      "Tensor grad_col_hardest, bool needs_image_grad, bool needs_text_grad, bool allow_tf32, "
      "bool allow_bf16, Tensor? row_labels=None, Tensor? col_labels=None) -> "
      "(Tensor image_grad, Tensor text_grad, Tensor logit_scale_grad)");

  // The length of a row of dots is the number of texts, rounded up to a multiple of this number.
  m.def("dots_column_multiple() -> int");

  m.def(
      "sigmoid_rows(Tensor image_features, Tensor text_features, Tensor logit_scale, Tensor logit_bias, "
      "int offset=0, bool allow_tf32=False, bool allow_bf16=False, int keep_bytes=0, "
      "Tensor? row_labels=None, Tensor? col_labels=None, bool same_are_positives=False) -> "
      "(Tensor row_loss, Tensor dots)");
  m.def(
      "sigmoid_rows_backward(Tensor image_features, Tensor text_features, Tensor logit_scale, "
      "Tensor logit_bias, int offset, Tensor dots, Tensor grad_rows, bool needs_image_grad, "
      "bool needs_text_grad, bool allow_tf32, bool allow_bf16, "
      "Tensor? row_labels=None, Tensor? col_labels=None, bool same_are_positives=False) -> "
      "(Tensor image_grad, Tensor text_grad, Tensor logit_scale_grad, Tensor logit_bias_grad)");

  m.def(
      "cycle_grams(Tensor image_features, Tensor text_features, bool cross=True) -> "
      "(Tensor plus_gram, Tensor minus_gram, Tensor cross_gram)");
  m.def(
      "cycle_grams_backward(Tensor image_features, Tensor text_features, Tensor grad_plus_gram, "
      "Tensor grad_minus_gram, Tensor grad_cross_gram) -> (Tensor image_grad, Tensor text_grad)");

  m.def(
      "cycle_direct(Tensor image_features, Tensor text_features, int keep_bytes=0) -> "
      "(Tensor in_modal_sum, Tensor cross_modal_sum, Tensor products)");
  m.def(
      "cycle_direct_backward(Tensor image_features, Tensor text_features, Tensor products, "
      "Tensor grad_in_modal_sum, Tensor grad_cross_modal_sum) -> (Tensor image_grad, Tensor text_grad)");

  m.def(
      "retrieval_ranks(Tensor image_features, Tensor text_features, Tensor image_labels, Tensor text_labels, "
      "bool allow_tf32=False) -> (Tensor row_rank, Tensor col_rank)");
  m.def(
      "similarity_top_k(Tensor query_features, Tensor candidate_features, int k, bool allow_tf32=False) -> "
      "(Tensor values, Tensor indices)");
}
