// What this CPU can run. Built with the architecture's baseline flags.
#pragma once

namespace qtool {

// Whether the CPU has every instruction of a qt_isa, the operating system keeps its registers and, for tiles, lets this
// process have them: that is asked for at the first call.
bool cpu_supports(int isa);

// Whether every CPU with `isa` also runs the kernels of `other`.
bool isa_includes(int isa, int other);

// Why a qt_isa is not supported, or that it is emulated; "" where there is nothing to say.
const char* isa_note(int isa);

// "scalar", "avx2", ...; "?" for what is no qt_isa.
const char* isa_name(int isa);

}  // namespace qtool
