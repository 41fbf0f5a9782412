#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "features.h"

namespace cyclip::cpu {

Tensor row_norms_op(const Tensor& features) {
  check_features(features, "features");
  return with_feature_type(features, [&](auto type) {
    using X = decltype(type);
    using T = ComputeType<X>;
    const Features<X> prepared(features);
    const Tensor norms = empty<T>({prepared.rows});
    std::copy_n(prepared.norms.data(), prepared.rows, norms.template mutable_data_ptr<T>());
    return norms;
  });
}

STABLE_TORCH_LIBRARY_IMPL(cyclip_ext, CPU, m) { m.impl("row_norms", TORCH_BOX(&row_norms_op)); }

}  // namespace cyclip::cpu
