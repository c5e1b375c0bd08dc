#include "sdwconv/sdwconv.h"

#include <cstring>

#include "core/rows.h"
#include "sconv/shape.h"
#include "sdwconv/product.h"

namespace qtool {
namespace {

constexpr Row<const SdwconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sdwconv/kernels.inc"
#undef QT_KERNEL
};

class Sdwconv final : public Op {
 public:
  Sdwconv(const qt_conv_args& args, const Row<const SdwconvKernel*>& row, Memory* memory)
      : row_(row), extents_(sconv_extents(args)), product_(args, *row.kernel, memory) {
    const int64_t taps = product_.taps(), width = product_.width();
    for (int64_t c = 0; c < args.in_channels; c++) {
      for (int64_t t = 0; t < taps; t++) {
        product_.weight()[t * width + c] = static_cast<const float*>(args.weight)[c * taps + t];
      }
    }
    if (args.bias_f32 != nullptr) std::memcpy(product_.bias(), args.bias_f32, int64_t{args.in_channels} * 4);
  }

  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override { return product_.scratch_bytes(); }

  void run(const RunContext& context) const override {
    const float* residual = extents_.input_count > 1 ? static_cast<const float*>(context.inputs[1]) : nullptr;
    product_.run(context, static_cast<const float*>(context.inputs[0]), residual, static_cast<float*>(context.output));
  }

 private:
  Row<const SdwconvKernel*> row_;
  Extents extents_;
  SdwconvProduct product_;
};

}  // namespace

std::unique_ptr<Op> make_sdwconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv(args);
  require(args.groups == args.in_channels && args.groups == args.out_channels, "the convolution is not depthwise");
  return std::make_unique<Sdwconv>(args, select_row(kRows, context), context.memory);
}

void list_sdwconv(std::vector<KernelInfo>* list) { list_rows("sdwconv", kRows, list); }

}  // namespace qtool
