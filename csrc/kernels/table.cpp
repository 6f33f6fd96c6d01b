// This level's table of kernels: each kernel file fills its own part.
#include "runtime/kernels.hpp"

namespace nf::NUMFORMER_LEVEL {

void fill_matmul(Kernels &);
void fill_attention(Kernels &);
void fill_attention_backward(Kernels &);

void fill_table(Kernels &table) {
#define NF_TEXT_OF(x) #x
#define NF_TEXT(x) NF_TEXT_OF(x)
    table.level = NF_TEXT(NUMFORMER_LEVEL);
    fill_matmul(table);
    fill_attention(table);
    fill_attention_backward(table);
}

} // namespace nf::NUMFORMER_LEVEL
