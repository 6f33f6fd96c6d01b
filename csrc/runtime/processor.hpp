// What the processor and the operating system allow, and which of our levels ("v2" ... "v4bf16", "neon") that means.
#pragma once
#include <string>
#include <vector>

namespace nf::runtime {

// Levels that were compiled in and that this machine runs, lowest first.
std::vector<std::string> available_levels();
// NUMFORMER_ISA if set (ValueError for an unknown or missing one), else the highest.
std::string choose_level();
// Whether this build has OpenMP; without it everything runs on the thread that calls.
bool has_threads();

} // namespace nf::runtime
