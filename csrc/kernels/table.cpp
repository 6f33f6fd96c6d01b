// This level's table of kernels: each kernel file fills its own part.
#include "runtime/kernels.hpp"

namespace nf::NUMFORMER_LEVEL {

void fill_matmul(Kernels &);
void fill_attention(Kernels &);
void fill_attention_backward(Kernels &);
void fill_attention_bias(Kernels &);
void fill_attention_relative(Kernels &);
void fill_ceiling(Kernels &);
void fill_softmax(Kernels &);
void fill_norm(Kernels &);
void fill_activation(Kernels &);
void fill_cross_entropy(Kernels &);
void fill_embedding(Kernels &);
void fill_dropout(Kernels &);
void fill_elementwise(Kernels &);
void fill_optimizer(Kernels &);

void fill_table(Kernels &table) {
#define NF_TEXT_OF(x) #x
#define NF_TEXT(x) NF_TEXT_OF(x)
    table.level = NF_TEXT(NUMFORMER_LEVEL);
    fill_matmul(table);
    fill_attention(table);
    fill_attention_backward(table);
    fill_ceiling(table);
#if !defined(__AMX_BF16__) // which lays hands on nothing but products of bfloat16
    fill_attention_bias(table);
    fill_attention_relative(table);
    fill_softmax(table);
    fill_norm(table);
    fill_activation(table);
    fill_cross_entropy(table);
    fill_embedding(table);
    fill_dropout(table);
    fill_elementwise(table);
    fill_optimizer(table);
#endif
}

} // namespace nf::NUMFORMER_LEVEL
