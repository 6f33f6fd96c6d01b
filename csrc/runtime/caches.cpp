#include "runtime/caches.hpp"

#include <unistd.h>

namespace nf::runtime {
namespace {

int64_t read_second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0)
        return bytes;
#endif
    return int64_t(1) << 20;
}

} // namespace

int64_t second_level_cache() {
    static const int64_t bytes = read_second_level_cache();
    return bytes;
}

} // namespace nf::runtime
