// A float convolution as a matrix product over packed panels, whoever packs them: see sconv.h for the formula.
#pragma once

#include "core/op.h"
#include "sconv/pixels.h"
#include "sconv/sconv.h"

namespace qtool {

// Up to kernel.columns output channels of one group.
struct SconvPanel {
  int64_t input, output;  // first channel
  int columns, vectors;
  float* weight;  // [depth][vectors * kernel.step], zero until it is packed
  float* bias;    // [vectors * kernel.step], likewise
};

// Where the output's pixel (n, y, x) begins, in floats.
struct SconvPlace {
  int64_t image, line, pixel;
};

class SconvProduct {
 public:
  // Of a checked description, whose arrays are not read. Without a `place` the output is dense.
  SconvProduct(const qt_conv_args& args, const SconvKernel& kernel, Memory* memory, const SconvPlace* place = nullptr);

  const std::vector<SconvPanel>& panels() const { return panels_; }
  int64_t depth() const { return depth_; }  // k of a group
  int64_t scratch_bytes() const;            // a thread
  // `residual` may be NULL.
  void run(const RunContext& context, const float* x, const float* residual, float* out) const;

 private:
  struct Block {  // a range of k: whole taps, or a part of one
    int64_t tap, taps, offset, length;
    int64_t depth;  // k where it begins
  };
  struct Job;
  void cut_panels(Memory* memory);
  void cut_blocks();
  void cut_chunks();
  int64_t pointer_bytes() const;
  int64_t partial_floats() const;
  int64_t patch_floats() const;
  void run_chunk(const Job& whole, int64_t chunk, uint8_t* scratch) const;
  void run_panel(const Job& job, const SconvPanel& panel) const;
  void put_away(const Job& job, float* out, int64_t first_panel, int64_t end_panel) const;

  qt_conv_args args_;  // without its arrays
  const SconvKernel& kernel_;
  SconvPixels pixels_;
  SconvPlace place_;
  bool dense_;
  int64_t rows_, group_channels_;  // pixels of the output; input channels of a group
  int64_t depth_;
  std::vector<SconvPanel> panels_;
  std::vector<Block> blocks_;
  int64_t row_parts_, panel_parts_, most_rows_;  // chunks are row_parts x panel_parts
};

}  // namespace qtool
