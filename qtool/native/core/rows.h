// The rows of a family's kernels.inc as a table, and the choice of one of them.
//
// kernels.inc holds a line a kernel, in the order of preference, least first:
//
//   QT_KERNEL(QT_ISA_SCALAR, quantize_scalar, "1")
//   #if QT_X86
//   QT_KERNEL(QT_ISA_AVX2, quantize_avx2, "8")
//   #endif
//
// The contract header declares them (an instruction set file includes only that header, which has no STL in it):
//
//   using QuantizeKernel = void (*)(const QuantizeJob&);
//   #define QT_KERNEL(isa, name, tile) void name(const QuantizeJob& job);
//   #include "family/kernels.inc"
//   #undef QT_KERNEL
//
// and the dispatch file makes the table:
//
//   constexpr Row<QuantizeKernel> kRows[] = {
//   #define QT_KERNEL(isa, name, tile) {isa, #name, tile, name},
//   #include "family/kernels.inc"
//   #undef QT_KERNEL
//   };
//   const Row<QuantizeKernel>& row = select_row(kRows, context);
//   list_rows("family", kRows, list);
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/op.h"

namespace qtool {

// `kernel` is a function, or a pointer to a constant struct that keeps kernel, packing and tile together.
template <class Kernel>
struct Row {
  int isa;
  const char* name;
  const char* tile;
  Kernel kernel;
};

// The row called `name`, or without a name the last one of those for which `usable(row)` holds and that `isa` includes.
// Depends on nothing but its arguments. InvalidPlan where there is none.
template <class Kernel, int N, class Usable>
const Row<Kernel>& select_row(const Row<Kernel> (&rows)[N], int isa, const char* name, const Usable& usable) {
  const Row<Kernel>* found = nullptr;
  for (const Row<Kernel>& row : rows) {
    const bool named = name != nullptr && std::strcmp(name, row.name) == 0;
    if (named && !isa_includes(isa, row.isa)) throw InvalidPlan(std::string("kernel ") + name + " needs " + isa_name(row.isa));
    if (named && !usable(row)) throw InvalidPlan(std::string("kernel ") + name + " cannot do this operator");
    if (name == nullptr ? isa_includes(isa, row.isa) && usable(row) : named) found = &row;
  }
  if (found == nullptr) throw InvalidPlan(std::string("no kernel ") + (name != nullptr ? name : "for this operator"));
  return *found;
}

template <class Kernel, int N>
const Row<Kernel>& select_row(const Row<Kernel> (&rows)[N], const MakeContext& context) {
  return select_row(rows, context.isa, context.kernel, [](const Row<Kernel>&) { return true; });
}

template <class Kernel, int N>
void list_rows(const char* family, const Row<Kernel> (&rows)[N], std::vector<KernelInfo>* list) {
  for (const Row<Kernel>& row : rows) list->push_back({family, row.isa, row.name, row.tile});
}

}  // namespace qtool
