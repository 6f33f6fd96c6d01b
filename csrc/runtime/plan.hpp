// What a call is going to do, told by the kernels from the constants and choices that they run by; for nf.explain.
// Plain data only, because kernels of every level include this.
#pragma once
#include <stdint.h>

namespace nf {

constexpr int kMostFacts = 24;

struct Plan {
    struct Fact {
        const char *name;
        int64_t value;
        bool yes_or_no; // what the value means
    };
    const char *path;       // which way the call takes, in words
    int64_t threads;        // how many can work at once
    int64_t scratch;        // most bytes of the pool that the kernel holds at once, the inputs and results apart
    double visited;         // attention: pairs of queries and keys whose scores are computed; else 0
    Fact facts[kMostFacts]; // sizes of blocks and the like
    int count;
};

} // namespace nf
