// Launches the sums of kernels/column_sums.hpp.
#pragma once
#include "cuda/kernels/column_sums.hpp"
#include "cuda/launchers/grids.hpp"

#include <utility>

namespace nf::cuda {

// out (columns) (+)= the sum of its partial sums, (chunks, columns), of one or two; those without any are left out.
template <class A, class O>
void add_partials_to(const char *operation, std::initializer_list<std::pair<const A *, void *>> sums, int64_t chunks,
                     int64_t columns, bool accumulate, Stream stream) {
    AddPartialsArgs<A> args{{}, {}, chunks, columns, accumulate};
    int count = 0;
    for (const auto &[partial, out] : sums)
        if (out) {
            args.partial[count] = partial;
            args.out[count++] = out;
        }
    launch(operation, count * ceil_div(columns, kWarp), kPartialThreads, shared_bytes<A>(kPartialThreads), stream,
           add_partials<A, O>, args);
}

} // namespace nf::cuda
