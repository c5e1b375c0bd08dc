// The forward convolution, and which operator is which.
#include "tconv/tconv.h"

#include <cmath>

#include "sconv/product.h"
#include "sconv/shape.h"
#include "tconv/pack.h"

namespace qtool {
namespace {

constexpr Row<const SconvKernel*> kProducts[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sconv/kernels.inc"
#undef QT_KERNEL
};

constexpr Row<const LayoutKernels*> kLayouts[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "layout/kernels.inc"
#undef QT_KERNEL
};

class Forward final : public Op {
 public:
  Forward(const qt_conv_args& args, const TconvRows& rows)
      : rows_(rows), extents_(sconv_extents(args)), product_(args, *rows.row.kernel, rows.memory) {
    const int64_t depth = product_.depth();
    extents_.input_count = 3;
    extents_.inputs[1] = checked_product({args.out_channels, depth, 4});
    extents_.inputs[2] = int64_t{args.out_channels} * 4;
  }

  const char* kernel() const override { return rows_.row.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override { return product_.scratch_bytes(); }

  void run(const RunContext& context) const override {
    const float* const* in = reinterpret_cast<const float* const*>(context.inputs);
    pack_forward(context.pool, product_, *rows_.row.kernel, *rows_.layout, in[1], in[2]);
    product_.run(context, in[0], nullptr, static_cast<float*>(context.output));
  }

 private:
  TconvRows rows_;
  Extents extents_;
  SconvProduct product_;
};

}  // namespace

std::unique_ptr<Op> make_tconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv_shape(args);
  require(args.residual == 0, "a convolution for training has no residual");
  const Row<const SconvKernel*>& row = select_row(kProducts, context);
  const auto any = [](const Row<const LayoutKernels*>&) { return true; };
  const TconvRows rows = {row, select_row(kLayouts, row.isa, nullptr, any).kernel, context.threads, context.memory};
  if (op.kind == QT_OP_TCONV_INPUT_GRAD) return make_input_grad(args, rows);
  if (op.kind == QT_OP_TCONV_WEIGHT_GRAD) return make_weight_grad(args, rows);
  return std::make_unique<Forward>(args, rows);
}

void list_tconv(std::vector<KernelInfo>*) {}

}  // namespace qtool
