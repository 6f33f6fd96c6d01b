// What operating systems do differently: aligned memory, fork, and what a process is told of its machine. The only file
// that asks which system this is.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nf::host {

// `alignment` a power of two, `bytes` a multiple of it. Null when there is no more memory; free it by free_aligned.
void *allocate_aligned(size_t alignment, size_t bytes) noexcept;
void free_aligned(void *block) noexcept;

// As pthread_atfork, each may be null. Does nothing where a process cannot fork.
void at_fork(void (*before)(), void (*in_parent)(), void (*in_child)());

// The system's number of the calling thread where it has a small one (Linux), else one of our own.
int32_t thread_number();

// Processors that this process may use by its affinity, and by the quotas of its cgroup and of those around it (in
// whole processors, rounded up); 0 where there is no such limit. `root` is put before the paths that are read, for
// tests.
int allowed_processors();
int processor_quota(const char *root = "");

// Bytes of the data cache of a level (1, 2, 3); 0 where the system does not say.
int64_t cache_bytes(int level);

// Memory of this process that is in RAM, in bytes; 0 where the system does not say.
int64_t resident_bytes();

} // namespace nf::host
