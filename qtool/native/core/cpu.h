// What this CPU can run. Built with the architecture's baseline flags.
#pragma once

namespace qtool {

// Whether the CPU has every instruction of a qt_isa and the operating system keeps its registers.
bool cpu_supports(int isa);

// "scalar", "avx2", ...; "?" for what is no qt_isa.
const char* isa_name(int isa);

}  // namespace qtool
