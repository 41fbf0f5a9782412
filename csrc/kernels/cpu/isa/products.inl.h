// Instantiates the matrix products for the instruction set that the including file selects.

#include "../product.inl.h"

namespace cyclip::cpu::CYCLIP_ISA {

extern const ProductKernel<float> float_product;
extern const ProductKernel<double> double_product;
const ProductKernel<float> float_product = {kPanelCols<float>, product_block<float>, gather_by_depth<float>};
const ProductKernel<double> double_product = {kPanelCols<double>, product_block<double>, gather_by_depth<double>};

}  // namespace cyclip::cpu::CYCLIP_ISA
