// The forward convolution, and which operator is which.
#include "tconv/tconv.h"

#include <algorithm>
#include <cstring>

#include "sconv/shape.h"
#include "tconv/products.h"

namespace qtool {
namespace {

constexpr Row<const SconvKernel*> kProducts[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sconv/kernels.inc"
#undef QT_KERNEL
};

constexpr Row<const SdwconvKernel*> kDepthwise[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sdwconv/kernels.inc"
#undef QT_KERNEL
};

constexpr Row<const LayoutKernels*> kLayouts[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "layout/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kMostTaps = 1 << 20, kMostStride = 1024;

// The best row of a helping family for an instruction set.
template <class Kernel, int N>
const Row<Kernel>& best_row(const Row<Kernel> (&rows)[N], int isa) {
  return select_row(rows, isa, nullptr, [](const Row<Kernel>&) { return true; });
}

TconvRows rows_of(const MakeContext& context, bool depthwise) {
  TconvRows rows = {kProducts[0], {0, "", "", nullptr}, nullptr, context.threads, context.memory};
  if (depthwise) rows.depthwise = select_row(kDepthwise, context);
  if (!depthwise) rows.product = select_row(kProducts, context);
  rows.layout = best_row(kLayouts, depthwise ? rows.depthwise.isa : rows.product.isa).kernel;
  return rows;
}

class Convolution final : public Op {
 public:
  Convolution(const qt_conv_args& args, const TconvRows& rows)
      : name_(rows.name()), extents_(sconv_extents(args)), product_(make_forward_product(args, rows)) {
    const int64_t inputs = args.in_channels / args.groups;
    extents_.input_count = 3;
    extents_.inputs[1] = checked_product({args.out_channels, args.kernel_height, args.kernel_width, inputs, 4});
    extents_.inputs[2] = int64_t{args.out_channels} * 4;
  }

  const char* kernel() const override { return name_; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override { return product_->scratch_bytes(); }

  void run(const RunContext& context) const override {
    const float* const* in = reinterpret_cast<const float* const*>(context.inputs);
    product_->pack(context.pool, in[1], in[2]);
    product_->run(context, in[0], static_cast<float*>(context.output));
  }

 private:
  const char* name_;
  Extents extents_;
  std::unique_ptr<TconvProduct> product_;
};

}  // namespace

std::unique_ptr<Op> make_tconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv_shape(args);
  require(args.residual == 0, "a convolution for training has no residual");
  // All taps, and all phases of a stride, are walked before the buffers are looked at: there must not be billions.
  const int64_t taps = checked_product({args.kernel_height, args.kernel_width});
  require(taps <= kMostTaps, "a kernel of more than 2^20 taps");
  require(std::min(args.stride_height, args.in_height) <= kMostStride, "a stride of more than 1024");
  require(std::min(args.stride_width, args.in_width) <= kMostStride, "a stride of more than 1024");
  const bool named = context.kernel != nullptr;
  const bool depthwise = is_depthwise(args) && !(named && std::strncmp(context.kernel, "sconv_", 6) == 0);
  if (op.kind == QT_OP_TCONV_WEIGHT_GRAD && depthwise) return make_depthwise_grad(args, context);
  const TconvRows rows = rows_of(context, depthwise);
  if (op.kind == QT_OP_TCONV_INPUT_GRAD) return make_input_grad(args, rows);
  if (op.kind == QT_OP_TCONV_WEIGHT_GRAD) return make_weight_grad(args, rows);
  return std::make_unique<Convolution>(args, rows);
}

}  // namespace qtool
