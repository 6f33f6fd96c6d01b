#include "runtime/caches.hpp"

#include "core/host.hpp"

namespace nf::runtime {

int64_t second_level_cache() {
    static const int64_t bytes = host::cache_bytes(2);
    return bytes > 0 ? bytes : int64_t(1) << 20;
}

} // namespace nf::runtime
