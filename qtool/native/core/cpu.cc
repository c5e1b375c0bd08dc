#include "core/cpu.h"

#include <cstdint>

#include "qtool.h"

#if QT_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qtool {
namespace {

// The best instruction set, whether there is AVX-VNNI, too, and what is to be said of AMX.
struct Found {
  int best;
  bool avxvnni;
  const char* amx;
};

#if QT_X86

struct Leaf {
  uint32_t eax, ebx, ecx, edx;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf r = {0, 0, 0, 0};
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where the leaf does not exist
  return r;
}

// The register sets that the operating system saves (XCR0); only to be read when cpuid says OSXSAVE.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

constexpr bool all(uint64_t have, uint64_t need) { return (have & need) == need; }

int detect_vectors() {
  const Leaf basic = cpuid(1, 0), extended = cpuid(7, 0);
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  if (!all(basic.ecx, kFma | kOsxsave | kAvx | kF16c)) return QT_ISA_SCALAR;
  const uint64_t saved = saved_registers();
  constexpr uint64_t kSse = 1u << 1, kYmm = 1u << 2, kOpmask = 1u << 5, kZmmLow = 1u << 6, kZmmHigh = 1u << 7;
  constexpr uint32_t kAvx2 = 1u << 5;
  if (!all(saved, kSse | kYmm) || !all(extended.ebx, kAvx2)) return QT_ISA_SCALAR;
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;
  constexpr uint32_t kVnni = 1u << 11;  // ecx
  const bool avx512 = all(saved, kOpmask | kZmmLow | kZmmHigh) && all(extended.ebx, kF | kDq | kCd | kBw | kVl);
  return avx512 && all(extended.ecx, kVnni) ? QT_ISA_AVX512VNNI : QT_ISA_AVX2;
}

// Why AMX cannot be used on a CPU with AVX512-VNNI; NULL where it can.
const char* missing_for_amx() {
#if !QT_AMX
  return "the compiler that built this library does not know it";
#elif QT_EMULATE_AMX
  return nullptr;
#else
  constexpr uint32_t kTile = 1u << 24, kInt8 = 1u << 25;  // edx
  if (!all(cpuid(7, 0).edx, kTile | kInt8)) return "this CPU does not have it";
  constexpr uint64_t kTileConfig = 1u << 17, kTileData = 1u << 18;
  if (!all(saved_registers(), kTileConfig | kTileData)) return "the operating system does not keep its registers";
  // Linux gives tile data on demand, to the whole process and the threads that it will have.
  constexpr long kRequestPermission = 0x1023, kTileDataNumber = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileDataNumber) != 0) {
    return "Linux does not allow it to this process (arch_prctl, since 5.16)";
  }
  return nullptr;
#endif
}

// On a CPU with AVX2.
bool has_avxvnni(int best) {
  constexpr uint32_t kAvxVnni = 1u << 4;  // leaf 7.1, eax
  if (!QT_AVXVNNI) return false;
  return QT_EMULATE_AVXVNNI ? best >= QT_ISA_AVX512VNNI : all(cpuid(7, 1).eax, kAvxVnni);
}

Found detect() {
  const int vectors = detect_vectors();
  const bool avxvnni = vectors >= QT_ISA_AVX2 && has_avxvnni(vectors);
  const int best = vectors == QT_ISA_AVX2 && avxvnni ? QT_ISA_AVXVNNI : vectors;
  if (best < QT_ISA_AVX512VNNI) return {best, avxvnni, "this CPU does not have it"};
  const char* missing = missing_for_amx();
  if (missing != nullptr) return {best, avxvnni, missing};
  return {QT_ISA_AMX, avxvnni, QT_EMULATE_AMX ? "emulated, for tests" : ""};
}

#else

Found detect() { return {QT_ISA_SCALAR, false, "this CPU does not have it"}; }

#endif

const Found& found() {
  static const Found once = detect();
  return once;
}

}  // namespace

bool isa_includes(int isa, int other) {
  return other == QT_ISA_AVXVNNI ? isa == QT_ISA_AVXVNNI : isa >= other;
}

bool cpu_supports(int isa) {
  return isa == QT_ISA_AVXVNNI ? found().avxvnni : isa >= QT_ISA_SCALAR && isa <= found().best;
}

const char* isa_note(int isa) {
  if (isa == QT_ISA_AMX) return found().amx;
  if (isa == QT_ISA_AVXVNNI && !QT_AVXVNNI) return "the compiler that built this library does not know it";
  if (!cpu_supports(isa)) return "this CPU does not have it";
  return isa == QT_ISA_AVXVNNI && QT_EMULATE_AVXVNNI ? "emulated, for tests" : "";
}

const char* isa_name(int isa) {
  switch (isa) {
    case QT_ISA_SCALAR: return "scalar";
    case QT_ISA_AVX2: return "avx2";
    case QT_ISA_AVXVNNI: return "avxvnni";
    case QT_ISA_AVX512VNNI: return "avx512vnni";
    case QT_ISA_AMX: return "amx";
    default: return "?";
  }
}

}  // namespace qtool
