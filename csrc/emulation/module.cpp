// Python module cyclip_emulation: the operators of torch.ops.cyclip_ext with the same names and
// arguments, over numpy arrays, executed by the emulator. Only the tests use it
// (python_tests/kernels).
//
// Features are float32 or float64 arrays or, for "bfloat16" and "float16", uint16 arrays of their
// bits; rows may be any distance apart. They are read in place, so that tests control the
// surrounding memory. Results are first written to guarded memory: a write out of bounds raises
// RuntimeError, and elements that a kernel does not write are NaN.

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/cuda/operators.h"
#include "guarded_memory.h"
#include "runtime.h"

namespace cyclip::emulation {

namespace {

namespace py = pybind11;
using namespace cyclip::cuda;

// Arguments that every operator takes in addition to those of its schema.
struct Options {
  ElementType type;
  py::dtype array_type;  // of the numpy arrays that represent tensors of this type
  bool allow_tf32;
  std::optional<int64_t> panel_bytes, large_tiles, tile_pairs;
  bool needs_hardest;  // of pair_statistics
  bool float64_is_slow;
  std::optional<py::array> row_labels, col_labels;
  bool same_are_positives;
  int64_t hopper_blocks;

  Options(const std::string& dtype, bool allow_tf32, std::optional<int64_t> panel_bytes,
          std::optional<int64_t> large_tiles, std::optional<int64_t> tile_pairs, bool needs_hardest,
          bool float64_is_slow, std::optional<py::array> row_labels, std::optional<py::array> col_labels,
          bool same_are_positives, int64_t hopper_blocks)
      : allow_tf32(allow_tf32),
        panel_bytes(panel_bytes),
        large_tiles(large_tiles),
        tile_pairs(tile_pairs),
        needs_hardest(needs_hardest),
        float64_is_slow(float64_is_slow),
        row_labels(std::move(row_labels)),
        col_labels(std::move(col_labels)),
        same_are_positives(same_are_positives),
        hopper_blocks(hopper_blocks) {
    if (dtype == "bfloat16" || dtype == "float16") {
      type = dtype == "float16" ? ElementType::kFloat16 : ElementType::kBFloat16;
      array_type = py::dtype::of<uint16_t>();
    } else if (dtype == "float32") {
      type = ElementType::kFloat32;
      array_type = py::dtype::of<float>();
    } else if (dtype == "float64") {
      type = ElementType::kFloat64;
      array_type = py::dtype::of<double>();
    } else {
      throw py::value_error("dtype must be bfloat16, float16, float32 or float64, got " + dtype);
    }
  }
};

std::string text_of(const py::handle& object) { return py::str(object).cast<std::string>(); }

Features features_of(const py::array& array, const Options& options, const char* name) {
  const auto require = [&](bool holds, const std::string& must) {
    if (!holds) {
      throw py::value_error(std::string(name) + " must " + must + "; got an array of " + text_of(array.dtype()) +
                            " with shape " + text_of(array.attr("shape")) + " and strides " +
                            text_of(array.attr("strides")));
    }
  };
  require(array.dtype().equal(options.array_type), "be of " + text_of(options.array_type));
  require(array.ndim() == 2 && array.size() > 0, "be [N, d] and not empty");
  const int64_t size = array.itemsize(), rows = array.shape(0), d = array.shape(1), stride = array.strides(0);
  require(d == 1 || array.strides(1) == size, "have unit column stride");
  require(stride >= 0 && stride % size == 0, "have rows a whole number of elements apart");
  return {array.data(), options.type, rows, d, stride / size};
}

template <typename T>
const T* vector_of(const py::array& array, int64_t size, const char* name) {
  const py::dtype type = py::dtype::of<T>();
  if (!array.dtype().equal(type) || array.size() != size || !(array.flags() & py::array::c_style)) {
    throw py::value_error(std::string(name) + " must be dense, " + std::to_string(size) + " values of " +
                          text_of(type) + "; got shape " + text_of(array.attr("shape")) + " of " +
                          text_of(array.dtype()));
  }
  return static_cast<const T*>(array.data());
}

const int64_t* labels_of(const std::optional<py::array>& array, int64_t size, const char* name) {
  return array ? vector_of<int64_t>(*array, size, name) : nullptr;
}

// A result during its computation.
class Output {
 public:
  Output(py::dtype type, std::vector<py::ssize_t> shape)
      : type_(std::move(type)),
        shape_(std::move(shape)),
        memory_(bytes(), type_.kind() == 'i' ? kUnwrittenInt : kUnwrittenFloat) {}

  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(memory_.data());
  }
  // Null if the result is not required.
  void* gradient() const { return shape_[0] > 0 ? memory_.data() : nullptr; }

  py::array take(const char* name) const {
    memory_.check(name);
    return py::array(type_, shape_, memory_.data());
  }

 private:
  size_t bytes() const {
    size_t product = static_cast<size_t>(type_.itemsize());
    for (const py::ssize_t extent : shape_) product *= static_cast<size_t>(extent);
    return product;
  }

  py::dtype type_;
  std::vector<py::ssize_t> shape_;
  GuardedBlock memory_;
};

Output doubles(std::vector<py::ssize_t> shape) { return {py::dtype::of<double>(), std::move(shape)}; }
Output integers(std::vector<py::ssize_t> shape) { return {py::dtype::of<int64_t>(), std::move(shape)}; }

// Without rows for a tower that does not need a gradient, as in the schemas.
Output gradient_of(const Features& features, const Options& options, bool needed = true) {
  return {options.array_type, {needed ? features.rows : 0, features.d}};
}

// Calls a launcher with a fresh workspace.
template <typename Launch>
void run(const Options& options, const Launch& launch) {
  GuardedWorkspace workspace;
  Context context{workspace, Stream{}};
  context.allow_tf32 = options.allow_tf32;
  context.panel_bytes = options.panel_bytes.value_or(context.panel_bytes);
  context.float64_is_slow = options.float64_is_slow;
  context.hopper_blocks = options.hopper_blocks;
  context.large_tiles = options.large_tiles.value_or(context.large_tiles);
  context.tile_pairs = options.tile_pairs.value_or(context.tile_pairs);
  const Error error = launch(context);
  if (error != kSuccess)
    throw std::runtime_error("launch failed: error " + std::to_string(static_cast<int>(error)));
  workspace.check();
}

py::array row_norms(const py::array& features, const Options& options) {
  const Features x = features_of(features, options, "features");
  const bool is_double = options.type == ElementType::kFloat64;
  const Output norms(is_double ? py::dtype::of<double>() : py::dtype::of<float>(), {x.rows});
  run(options, [&](const Context& context) { return launch_row_norms_forward(x, norms.data<void>(), context); });
  return norms.take("norms");
}

py::tuple pair_statistics(const py::array& image_features, const py::array& text_features,
                          const py::array& logit_scale, int64_t offset, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const int64_t n = image.rows, m = text.rows;
  const Output row_lse = doubles({n}), col_lse = doubles({m}), positive = doubles({n});
  const Output row_hardest = doubles({n}), col_hardest = doubles({m});
  const Output row_index = integers({n}), col_index = integers({m});
  const PairStatisticsForward args = {image,
                                      text,
                                      vector_of<double>(logit_scale, 1, "logit_scale"),
                                      offset,
                                      row_lse.data<double>(),
                                      col_lse.data<double>(),
                                      positive.data<double>(),
                                      row_hardest.data<double>(),
                                      col_hardest.data<double>(),
                                      row_index.data<int64_t>(),
                                      col_index.data<int64_t>(),
                                      options.needs_hardest,
                                      labels_of(options.row_labels, n, "row_labels"),
                                      labels_of(options.col_labels, m, "col_labels"),
                                      options.same_are_positives};
  run(options, [&](const Context& context) { return launch_pair_statistics_forward(args, context); });
  return py::make_tuple(row_lse.take("row_lse"), col_lse.take("col_lse"), positive.take("positive"),
                        row_hardest.take("row_hardest"), col_hardest.take("col_hardest"),
                        row_index.take("row_hardest_index"), col_index.take("col_hardest_index"));
}

py::tuple pair_statistics_backward(const py::array& image_features, const py::array& text_features,
                                   const py::array& logit_scale, int64_t offset, const py::array& row_lse,
                                   const py::array& col_lse, const py::array& row_hardest_index,
                                   const py::array& col_hardest_index, const py::array& grad_row_lse,
                                   const py::array& grad_col_lse, const py::array& grad_positive,
                                   const py::array& grad_row_hardest, const py::array& grad_col_hardest,
                                   bool needs_image_grad, bool needs_text_grad, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const int64_t n = image.rows, m = text.rows;
  const Output image_grad = gradient_of(image, options, needs_image_grad);
  const Output text_grad = gradient_of(text, options, needs_text_grad);
  const Output scale_grad = doubles({});
  const PairStatisticsBackward args = {image,
                                       text,
                                       vector_of<double>(logit_scale, 1, "logit_scale"),
                                       offset,
                                       vector_of<double>(row_lse, n, "row_lse"),
                                       vector_of<double>(col_lse, m, "col_lse"),
                                       vector_of<int64_t>(row_hardest_index, n, "row_hardest_index"),
                                       vector_of<int64_t>(col_hardest_index, m, "col_hardest_index"),
                                       vector_of<double>(grad_row_lse, n, "grad_row_lse"),
                                       vector_of<double>(grad_col_lse, m, "grad_col_lse"),
                                       vector_of<double>(grad_positive, n, "grad_positive"),
                                       vector_of<double>(grad_row_hardest, n, "grad_row_hardest"),
                                       vector_of<double>(grad_col_hardest, m, "grad_col_hardest"),
                                       image_grad.gradient(),
                                       text_grad.gradient(),
                                       scale_grad.data<double>(),
                                       labels_of(options.row_labels, n, "row_labels"),
                                       labels_of(options.col_labels, m, "col_labels")};
  run(options, [&](const Context& context) { return launch_pair_statistics_backward(args, context); });
  return py::make_tuple(image_grad.take("image_grad"), text_grad.take("text_grad"),
                        scale_grad.take("logit_scale_grad"));
}

py::array sigmoid_rows(const py::array& image_features, const py::array& text_features,
                       const py::array& logit_scale, const py::array& logit_bias, int64_t offset,
                       const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const Output row_loss = doubles({image.rows});
  const SigmoidRowsForward args = {image,
                                   text,
                                   vector_of<double>(logit_scale, 1, "logit_scale"),
                                   vector_of<double>(logit_bias, 1, "logit_bias"),
                                   offset,
                                   row_loss.data<double>(),
                                   labels_of(options.row_labels, image.rows, "row_labels"),
                                   labels_of(options.col_labels, text.rows, "col_labels"),
                                   options.same_are_positives};
  run(options, [&](const Context& context) { return launch_sigmoid_rows_forward(args, context); });
  return row_loss.take("row_loss");
}

py::tuple sigmoid_rows_backward(const py::array& image_features, const py::array& text_features,
                                const py::array& logit_scale, const py::array& logit_bias, int64_t offset,
                                const py::array& grad_rows, bool needs_image_grad, bool needs_text_grad,
                                const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const Output image_grad = gradient_of(image, options, needs_image_grad);
  const Output text_grad = gradient_of(text, options, needs_text_grad);
  const Output scale_grad = doubles({}), bias_grad = doubles({});
  const SigmoidRowsBackward args = {image,
                                    text,
                                    vector_of<double>(logit_scale, 1, "logit_scale"),
                                    vector_of<double>(logit_bias, 1, "logit_bias"),
                                    offset,
                                    vector_of<double>(grad_rows, image.rows, "grad_rows"),
                                    image_grad.gradient(),
                                    text_grad.gradient(),
                                    scale_grad.data<double>(),
                                    bias_grad.data<double>(),
                                    labels_of(options.row_labels, image.rows, "row_labels"),
                                    labels_of(options.col_labels, text.rows, "col_labels"),
                                    options.same_are_positives};
  run(options, [&](const Context& context) { return launch_sigmoid_rows_backward(args, context); });
  return py::make_tuple(image_grad.take("image_grad"), text_grad.take("text_grad"),
                        scale_grad.take("logit_scale_grad"), bias_grad.take("logit_bias_grad"));
}

py::tuple cycle_grams(const py::array& image_features, const py::array& text_features, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const int64_t d = image.d;
  const Output plus = doubles({d, d}), minus = doubles({d, d}), cross = doubles({d, d});
  const CycleGramsForward args = {image, text, plus.data<double>(), minus.data<double>(), cross.data<double>()};
  run(options, [&](const Context& context) { return launch_cycle_grams_forward(args, context); });
  return py::make_tuple(plus.take("plus_gram"), minus.take("minus_gram"), cross.take("cross_gram"));
}

py::tuple cycle_grams_backward(const py::array& image_features, const py::array& text_features,
                               const py::array& grad_plus_gram, const py::array& grad_minus_gram,
                               const py::array& grad_cross_gram, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const int64_t entries = image.d * image.d;
  const Output image_grad = gradient_of(image, options), text_grad = gradient_of(text, options);
  const CycleGramsBackward args = {image,
                                   text,
                                   vector_of<double>(grad_plus_gram, entries, "grad_plus_gram"),
                                   vector_of<double>(grad_minus_gram, entries, "grad_minus_gram"),
                                   vector_of<double>(grad_cross_gram, entries, "grad_cross_gram"),
                                   image_grad.gradient(),
                                   text_grad.gradient()};
  run(options, [&](const Context& context) { return launch_cycle_grams_backward(args, context); });
  return py::make_tuple(image_grad.take("image_grad"), text_grad.take("text_grad"));
}

py::tuple cycle_direct(const py::array& image_features, const py::array& text_features, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const Output in_modal = doubles({}), cross_modal = doubles({});
  const CycleDirectForward args = {image, text, in_modal.data<double>(), cross_modal.data<double>()};
  run(options, [&](const Context& context) { return launch_cycle_direct_forward(args, context); });
  return py::make_tuple(in_modal.take("in_modal_sum"), cross_modal.take("cross_modal_sum"));
}

py::tuple cycle_direct_backward(const py::array& image_features, const py::array& text_features,
                                const py::array& grad_in_modal_sum, const py::array& grad_cross_modal_sum,
                                const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const Output image_grad = gradient_of(image, options), text_grad = gradient_of(text, options);
  const CycleDirectBackward args = {image,
                                    text,
                                    vector_of<double>(grad_in_modal_sum, 1, "grad_in_modal_sum"),
                                    vector_of<double>(grad_cross_modal_sum, 1, "grad_cross_modal_sum"),
                                    image_grad.gradient(),
                                    text_grad.gradient()};
  run(options, [&](const Context& context) { return launch_cycle_direct_backward(args, context); });
  return py::make_tuple(image_grad.take("image_grad"), text_grad.take("text_grad"));
}

py::tuple retrieval_ranks(const py::array& image_features, const py::array& text_features,
                          const py::array& image_labels, const py::array& text_labels, const Options& options) {
  const Features image = features_of(image_features, options, "image_features");
  const Features text = features_of(text_features, options, "text_features");
  const Output row_rank = integers({image.rows}), col_rank = integers({text.rows});
  const RetrievalRanksForward args = {image,
                                      text,
                                      vector_of<int64_t>(image_labels, image.rows, "image_labels"),
                                      vector_of<int64_t>(text_labels, text.rows, "text_labels"),
                                      row_rank.data<int64_t>(),
                                      col_rank.data<int64_t>()};
  run(options, [&](const Context& context) { return launch_retrieval_ranks_forward(args, context); });
  return py::make_tuple(row_rank.take("row_rank"), col_rank.take("col_rank"));
}

py::tuple similarity_top_k(const py::array& query, const py::array& candidate, int64_t k, const Options& options) {
  const Features q = features_of(query, options, "query"), c = features_of(candidate, options, "candidate");
  const Output values = doubles({q.rows, k}), indices = integers({q.rows, k});
  const SimilarityTopKForward args = {q, c, k, values.data<double>(), indices.data<int64_t>()};
  run(options, [&](const Context& context) { return launch_similarity_top_k_forward(args, context); });
  return py::make_tuple(values.take("values"), indices.take("indices"));
}

}  // namespace

PYBIND11_MODULE(cyclip_emulation, m) {
  py::class_<Options>(m, "Options")
      .def(py::init<const std::string&, bool, std::optional<int64_t>, std::optional<int64_t>,
                    std::optional<int64_t>, bool, bool, std::optional<py::array>, std::optional<py::array>, bool,
                    int64_t>(),
           py::arg("dtype"), py::arg("allow_tf32") = false, py::arg("panel_bytes") = py::none(),
           py::arg("large_tiles") = py::none(), py::arg("tile_pairs") = py::none(),
           py::arg("needs_hardest") = true, py::arg("float64_is_slow") = false, py::arg("row_labels") = py::none(),
           py::arg("col_labels") = py::none(), py::arg("same_are_positives") = false, py::arg("hopper_blocks") = 0,
           "None: the same as on a GPU.");
  py::native_enum<Order>(m, "Order", "enum.Enum")
      .value("ASCENDING", Order::kAscending)
      .value("DESCENDING", Order::kDescending)
      .value("RANDOM", Order::kRandom)
      .finalize();
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 0);
  m.def("hopper_launches", &hopper_launches);
  m.def("row_norms", &row_norms);
  m.def("pair_statistics", &pair_statistics);
  m.def("pair_statistics_backward", &pair_statistics_backward);
  m.def("sigmoid_rows", &sigmoid_rows);
  m.def("sigmoid_rows_backward", &sigmoid_rows_backward);
  m.def("cycle_grams", &cycle_grams);
  m.def("cycle_grams_backward", &cycle_grams_backward);
  m.def("cycle_direct", &cycle_direct);
  m.def("cycle_direct_backward", &cycle_direct_backward);
  m.def("retrieval_ranks", &retrieval_ranks);
  m.def("similarity_top_k", &similarity_top_k);
}

}  // namespace cyclip::emulation
