// Exact attention, forward: out = softmax(scale * q k^T + mask) v, and the log-sum-exp of each row.
//
// The scheme of Dao, "FlashAttention-2" (2023), with the online softmax of Milakov and Gimelshein (2018): the N x M
// scores are never in memory. For a block of 112 queries (8 strips of 14) the keys are visited in blocks of 512:
//   1. S (strip x keys) = Q K^T, a tile at a time; scale * log2(e) is already in Q, so that exp is 2^x
//   2. per row: m' = max(m, max S), P = 2^(S - m'), l = l 2^(m - m') + sum P
//   3. O = O 2^(m - m') + P V
// and at the end O / l, and lse = (m + log2 l) ln 2. A strip of P is 14 x 512 floats = 28 KiB, in L1; K and V of a
// block, 512 x 64 floats = 128 KiB each, in L2 for all 8 strips. K is transposed once a head into panels of 32 keys; V
// is read where it lies. Work behind the diagonal (or outside the window) is left out by the panel. What else may
// happen to scores and probabilities is in attention_scores.hpp, between 1 and 2, and between 2 and 3.
//
// Types: T is that of the arrays, A = Acc<T> that of scores and sums, E that of the operands of both products
// (tile.hpp). bfloat16 is multiplied as pairs where the level has an instruction for them: P is then rounded to
// bfloat16, its sum l is not. With relative positions, and heads wider than kMostPairs pairs, it is widened, as float16
// is everywhere.
#include "kernels/attention_ahead.hpp"
#include "kernels/attention_decode.hpp"
#include "kernels/attention_relative.hpp"

namespace nf::NUMFORMER_LEVEL {
namespace {

// Probabilities of a strip: where scores were, or beside them as pairs of bfloat16.
template <class E> constexpr int kProbabilityStride = kPairs<E> ? kBlockKeys / 2 + 16 : kRowStride; // operands
template <class E> using Probability = std::conditional_t<kPairs<E>, bf16, Acc<E>>;

// The keys and values of one head, as tiles want them.
template <class E, class T> struct Head {
    typedef Acc<E> A;
    const E *keys;
    Panels<E> values;
    const T *v;
    int64_t v_row;
    const A *values_finite; // of each block of keys: 1 or 0
    const A *relative;      // of each query head in turn, see attention_relative.hpp
};

template <class E> int64_t packed_keys_size(const AttentionArgs &args) {
    return round_up(args.keys, kTileColumns<E>) * steps_of<E>(args.dim);
}
template <class E, class T> int64_t packed_size(const AttentionArgs &args) {
    typedef Acc<E> A;
    const int64_t group = args.kv_heads ? args.heads / args.kv_heads : 0;
    return packed_keys_size<E>(args) + round_up(ceil_div(args.keys, kBlockKeys), kLanes<A>) +
           group * relative_panels_size<A>(args) +
           (lies_in_panels<E, T>(args.value_dim) ? 0 : panels_size<E>(args.keys, args.value_dim));
}

template <class E, class T> Head<E, T> pack_head(const KvHead &of, Acc<E> *memory) {
    typedef Acc<E> A;
    static_assert(sizeof(E) == sizeof(A), "sizes are counted in either");
    const AttentionArgs &args = *of.args;
    Head<E, T> head;
    E *keys = reinterpret_cast<E *>(memory);
    pack_keys<E, T>(head_of<T>(args.k, of.batch, of.head), args.keys, args.dim, args.k.row, keys);
    head.keys = keys;
    memory += packed_keys_size<E>(args);
    head.v = head_of<T>(args.v, of.batch, of.head);
    head.v_row = args.v.row;
    head.values_finite = memory;
    for (int64_t block = 0; block * kBlockKeys < args.keys; ++block) {
        const int64_t key0 = block * kBlockKeys, keys_of_block = smaller(kBlockKeys, args.keys - key0);
        memory[block] =
            all_finite<A>(head.v + key0 * args.v.row, keys_of_block, args.value_dim, args.v.row) ? A(1) : A(0);
    }
    memory += round_up(ceil_div(args.keys, kBlockKeys), kLanes<A>);
    head.relative = memory;
    if (args.relative.r)
        for (int64_t i = 0; i < of.group; ++i, memory += relative_panels_size<A>(args))
            pack_relative<A, T>(args, of.head * of.group + i, memory);
    head.values = as_panels<E, T>(head.v, args.keys, args.value_dim, args.v.row, reinterpret_cast<E *>(memory));
    return head;
}

// Step 3 where a partly masked strip meets a value that is not finite: 0 x NaN is NaN, so masked pairs are left out one
// by one.
template <class E, class T>
void add_values_selecting(const Scoring<Acc<E>, T> &scoring, const Head<E, T> &head, const Probability<E> *p,
                          int64_t p_row, int64_t query0, int64_t rows, int64_t key0, int64_t keys, Acc<E> *o,
                          int64_t o_row) {
    typedef Acc<E> A;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < keys; ++j)
            if (may_attend(scoring, query0 + i, key0 + j))
                for (int64_t d = 0; d < scoring.args->value_dim; ++d)
                    o[i * o_row + d] +=
                        A(load_one(p + i * p_row + j)) * A(load_one(head.v + (key0 + j) * head.v_row + d));
}

template <class E> struct Workspace {
    typedef Acc<E> A;
    E *q;
    A *scores, *o;
    E *p;                           // the strip's probabilities
    A *q_relative, *band, *queries; // relative positions only: q + v in strips, and rows of q + u or q + v
    static constexpr int64_t kScores = kStripRows<E> * kRowStride,
                             kApart = kPairs<E> ? kStripRows<E> * kProbabilityStride<E> : 0;
    static int64_t size(const AttentionArgs &args) {
        const int64_t of_queries = strips_size<E>(kQueries<E>, args.dim);
        return of_queries + kScores + kApart + kQueries<E> * round_up(args.value_dim, kTileColumns<E>) +
               (args.relative.r ? of_queries + kBandSize + kQueries<E> * args.dim : 0);
    }
    Workspace(const AttentionArgs &args, A *memory)
        : q(reinterpret_cast<E *>(memory)), scores(memory + strips_size<E>(kQueries<E>, args.dim)),
          o(scores + kScores + kApart), p(reinterpret_cast<E *>(kApart > 0 ? scores + kScores : scores)),
          q_relative(o + kQueries<E> * round_up(args.value_dim, kTileColumns<E>)),
          band(q_relative + strips_size<E>(kQueries<E>, args.dim)), queries(band + kBandSize) {}
};

// Steps 1 to 3 for a strip of queries [query, query + rows) and the keys [first, last) of one block. `strip`: where the
// packed strip begins in q, and in q_relative.
template <class E, class T>
NF_INLINE void attend_strip(const AttentionArgs &args, const Head<E, T> &head, const Scoring<Acc<E>, T> &scoring,
                            int64_t query, int64_t rows, int64_t first, int64_t last, int64_t strip,
                            const Workspace<E> &work, Acc<E> *o, int64_t o_row, Acc<E> *maximum, Acc<E> *sum,
                            Ahead &ahead) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>, kOfRow = kProbabilityStride<E> * kElements<E>;
    const int64_t width = last - first, full_width = round_up(width, kLanes<A>), steps = steps_of<E>(args.dim);
    Ahead pairs;
    fetch_pairs(scoring, query, rows, first, width, pairs);
    for (int64_t j = 0; j < width; j += NR)
        multiply_ahead<E, Strip<E>>(pairs.any() ? pairs : ahead, steps, rows, width - j, work.q + strip,
                                    head.keys + (first + j) * steps, NR, work.scores + j, kRowStride, Store::write);
    if (args.relative.r)
        add_relative(args, work.q_relative + strip,
                     head.relative + scoring.head % (args.heads / args.kv_heads) * relative_panels_size<A>(args), query,
                     rows, first, width, work.band, work.scores, kRowStride);
    prepare_scores(scoring, query, rows, first, width, work.scores);
    Probability<E> *const p = reinterpret_cast<Probability<E> *>(work.p);
    A factors[kStripRows<E>];
    if (args.dropout.limit) {
        softmax_rows<A, Scores::natural>(work.scores, rows, full_width, scoring.unit(), maximum, sum, work.scores,
                                         kRowStride, factors);
        drop_probabilities(scoring, query, rows, first, width, work.scores, p, kOfRow);
    } else if (scoring.plain) {
        softmax_rows<A, kPairs<E> ? Scores::products : Scores::log2>(work.scores, rows, full_width, scoring.unit(),
                                                                     maximum, sum, p, kOfRow, factors);
    } else {
        softmax_rows<A, Scores::natural>(work.scores, rows, full_width, scoring.unit(), maximum, sum, p, kOfRow,
                                         factors);
    }
    for (int64_t i = 0; i < rows; ++i) {
        if (kByMatrices<E> && full_width % (2 * kLanes<A>) != 0) // whole registers of pairs
            store_probabilities(p + i * kOfRow + full_width, Vec<A>{});
        if (factors[i] != 1) {
            A *o_of_row = o + i * o_row;
            for (int64_t d = 0; d < o_row; d += kLanes<A>)
                store(o_of_row + d, load(o_of_row + d) * factors[i]);
        }
    }
    // A pair reaches a key further where their number is odd.
    const bool reaches_others = kPairs<E> && width % 2 != 0 && last < args.keys;
    if (head.values_finite[first / kBlockKeys] != 0 ||
        (!scoring.bias && !reaches_others && all_kept(scoring, query, rows, first, width)))
        for (int64_t j = 0; j < args.value_dim; j += NR)
            multiply_ahead<E, InRows<kProbabilityStride<E>>>(ahead, steps_of<E>(width), rows, args.value_dim - j,
                                                             work.p, head.values.at(first, j), head.values.row, o + j,
                                                             o_row, Store::add);
    else
        add_values_selecting<E, T>(scoring, head, p, kOfRow, query, rows, first, width, o, o_row);
}

// Queries [query0, query0 + queries) of one head: at most kQueries.
template <class E, class T>
void attend_block(const AttentionArgs &args, const Head<E, T> &head, int64_t batch, int64_t head_index, int64_t query0,
                  const Workspace<E> &work, Ahead &ahead) {
    typedef Acc<E> A;
    constexpr int64_t NR = kTileColumns<E>;
    [[maybe_unused]] const Registers<E> registers{};
    const int64_t queries = smaller(kQueries<E>, args.queries - query0);
    const int64_t o_row = round_up(args.value_dim, NR);
    Scoring<A, T> scoring = Scoring<A, T>::of(args, batch, head_index);
    scoring.narrow();
    if (kPairs<E>)
        scoring.leave_queries();
    const T *q = head_of<T>(args.q, batch, head_index) + query0 * args.q.row;
    if (args.relative.r && !kPairs<E>) {
        A *strips = reinterpret_cast<A *>(work.q);
        add_to_queries(q, queries, args.dim, args.q.row, args.relative.bias_u + head_index * args.dim, work.queries);
        pack_strips<A, A>(work.queries, queries, args.dim, args.dim, scoring.factor(), strips);
        add_to_queries(q, queries, args.dim, args.q.row, args.relative.bias_v + head_index * args.dim, work.queries);
        pack_strips<A, A>(work.queries, queries, args.dim, args.dim, scoring.factor(), work.q_relative);
    } else {
        pack_strips<E, T>(q, queries, args.dim, args.q.row, scoring.factor(), work.q);
    }
    A maximum[kQueries<E>], sum[kQueries<E>];
    const Start<A> start = start_of(scoring);
    for (int64_t i = 0; i < queries; ++i) {
        maximum[i] = start.maximum;
        sum[i] = start.sum;
    }
    memset(work.o, 0, size_t(queries * o_row) * sizeof(A));

    KeyRange block = keys_of_any(scoring, query0, query0 + queries);
    if (scoring.global)
        block = {0, smaller(args.keys, args.causal_high + query0 + queries)};
    for (int64_t block0 = block.first / kBlockKeys * kBlockKeys; block0 < block.last; block0 += kBlockKeys) {
        const int64_t block_end = smaller(block0 + kBlockKeys, args.keys);
        for (int64_t i0 = 0; i0 < queries; i0 += kStripRows<E>) {
            const int64_t rows = smaller(kStripRows<E>, queries - i0), query = query0 + i0;
            const int64_t strip = i0 / kStripRows<E> * strip_size<E>(args.dim);
            KeyRange piece = next_keys(scoring, query, rows, block0, block_end);
            for (; piece.first < piece.last; piece = next_keys(scoring, query, rows, piece.last, block_end))
                attend_strip(args, head, scoring, query, rows, piece.first, piece.last, strip, work,
                             work.o + i0 * o_row, o_row, maximum + i0, sum + i0, ahead);
        }
    }

    T *out = head_of<T>(args.out, batch, head_index) + query0 * args.out.row;
    A *lse = static_cast<A *>(args.lse) + (batch * args.heads + head_index) * args.lse_row + query0;
    for (int64_t i = 0; i < queries; ++i)
        finish_row(scoring, work.o + i * o_row, maximum[i], sum[i], out + i * args.out.row, lse + i);
}

// Blocks of queries before the end of a head from which on the first ones, the keys and the values of the next head are
// fetched: as many as have tiles for all these lines. None where there is much more than a second-level cache holds:
// what it lost waits in the third.
template <class E, class T> int64_t blocks_to_fetch_head(const AttentionArgs &args) {
    const int64_t bytes = args.keys * (args.dim + args.value_dim) * int64_t(sizeof(T));
    if (bytes > runtime::second_level_cache() * 4)
        return 0;
    const int64_t lines = (bytes + kQueries<E> * args.dim * int64_t(sizeof(T))) / runtime::kLineBytes;
    const int64_t steps = args.keys * (args.dim + args.value_dim) / (kTileColumns<E> * kElements<E>);
    return 1 + ceil_div(lines, larger(1, kStripsOfBlock * steps)); // the last block may be short
}

// Blocks [first, last) of queries, counted over the heads that share the keys. `next`: the head that comes after them,
// or null.
template <class E, class T>
void attend_head(const KvHead &of, const Head<E, T> &head, int64_t first, int64_t last, const Workspace<E> &work,
                 const KvHead *next) {
    const int64_t blocks = ceil_div(of.args->queries, kQueries<E>);
    auto head_of_task = [&](int64_t task) { return of.head * of.group + task / blocks; };
    Ahead ahead;
    auto fetch_queries = [&](const KvHead &from, int64_t head_index, int64_t query0) {
        const AttentionArgs &args = *from.args;
        ahead.add(head_of<T>(args.q, from.batch, head_index) + query0 * args.q.row,
                  smaller(kQueries<E>, args.queries - query0), args.dim, args.q.row);
    };
    auto fetch_output = [&](int64_t head_index, int64_t query0) {
        const AttentionArgs &args = *of.args;
        ahead.add(head_of<T>(args.out, of.batch, head_index) + query0 * args.out.row,
                  smaller(kQueries<E>, args.queries - query0), args.value_dim, args.out.row);
    };
    const int64_t fetch_head = next ? larger(first, last - blocks_to_fetch_head<E, T>(*next->args)) : last;
    for (int64_t task = first; task < last; ++task) {
        fetch_output(head_of_task(task), task % blocks * kQueries<E>);
        if (task + 1 < last)
            fetch_queries(of, head_of_task(task + 1), (task + 1) % blocks * kQueries<E>);
        if (task == fetch_head) {
            const AttentionArgs &args = *next->args;
            ahead.add(head_of<T>(args.k, next->batch, next->head), args.keys, args.dim, args.k.row);
            ahead.add(head_of<T>(args.v, next->batch, next->head), args.keys, args.value_dim, args.v.row);
            fetch_queries(*next, next->head * next->group, 0);
        }
        attend_block<E, T>(*of.args, head, of.batch, head_of_task(task), task % blocks * kQueries<E>, work, ahead);
    }
}

// Few heads: pack all, then divide the blocks of queries. Later blocks first: with a causal mask they are the longest.
template <class E, class T> bool attend_few(const Sequences &all, int64_t kv_heads) {
    typedef Acc<E> A;
    struct Part {
        KvHead of;
        Head<E, T> head;
        int64_t memory, first_task;
        bool few_queries;
    };
    Scratch<Part> parts(kv_heads + 1);
    if (!parts)
        return false;
    int64_t size = 0, tasks = 0;
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
        Part &part = parts.data[kv];
        part.of = find_kv_head(all, kv);
        part.memory = size;
        part.first_task = tasks;
        part.few_queries = has_few_queries(*part.of.args);
        size += part.few_queries ? 0 : packed_size<E, T>(*part.of.args);
        tasks += part.few_queries ? 1 : part.of.group * ceil_div(part.of.args->queries, kQueries<E>);
    }
    parts.data[kv_heads].first_task = tasks;
    Scratch<A> memory(size);
    if (!memory)
        return false;
    parallel_tasks(kv_heads, [&](int64_t kv) {
        Part &part = parts.data[kv];
        if (!part.few_queries)
            part.head = pack_head<E, T>(part.of, memory.data + part.memory);
    });
    Failure failure;
    parallel_tasks(tasks, [&](int64_t index) {
        const int64_t task = tasks - 1 - index;
        int64_t kv = 0;
        while (parts.data[kv + 1].first_task <= task) // at most a few
            ++kv;
        const Part &part = parts.data[kv];
        if (part.few_queries) {
            if (!decode_head<A, T>(part.of))
                failure.set();
            return;
        }
        Scratch<A> work(Workspace<E>::size(*part.of.args));
        if (!work)
            return failure.set();
        attend_head<E, T>(part.of, part.head, task - part.first_task, task - part.first_task + 1,
                          Workspace<E>(*part.of.args, work.data), nullptr);
    });
    return !failure.happened;
}

bool all_have_few_queries(const Sequences &all) {
    int64_t decoding = 0;
    for (int64_t s = 0; s < all.count; ++s)
        decoding += has_few_queries(all.data[s]);
    return decoding == all.count;
}

template <class E, class T> bool attention_of(const Sequences &all) {
    typedef Acc<E> A;
    const int64_t kv_heads = all.kv_heads(), threads = runtime::threads_here();
    if (all_have_few_queries(all))
        return decode<A, T>(all);
    const double work = work_of(all);
    if (divides_blocks(work, kv_heads, threads))
        return attend_few<E, T>(all, kv_heads);
    // Enough heads: each packs its keys and uses them while they are in cache.
    int64_t packed = 0, size = 0;
    for (int64_t s = 0; s < all.count; ++s) {
        packed = larger(packed, packed_size<E, T>(all.data[s]));
        size = larger(size, Workspace<E>::size(all.data[s]));
    }
    const int64_t at_once = heads_of_task(work, kv_heads, threads);
    Failure failure;
    parallel_tasks(ceil_div(kv_heads, at_once), [&](int64_t task) {
        Scratch<A> memory(packed + size);
        if (!memory)
            return failure.set();
        const int64_t end = smaller(kv_heads, (task + 1) * at_once);
        for (int64_t kv = task * at_once; kv < end; ++kv) {
            const KvHead of = find_kv_head(all, kv);
            if (has_few_queries(*of.args)) {
                if (!decode_head<A, T>(of))
                    failure.set();
                continue;
            }
            const int64_t next_kv = head_after(kv, end, at_once, threads);
            const KvHead next = find_kv_head(all, smaller(next_kv, kv_heads - 1));
            const Head<E, T> head = pack_head<E, T>(of, memory.data);
            attend_head<E, T>(of, head, 0, of.group * ceil_div(of.args->queries, kQueries<E>),
                              Workspace<E>(*of.args, memory.data + packed),
                              next_kv < kv_heads && !has_few_queries(*next.args) ? &next : nullptr);
        }
    });
    return !failure.happened;
}

template <class T> bool attention(const AttentionArgs *sequences, int64_t count) {
    const Sequences all{sequences, count};
    return takes_pairs<T>(all) ? attention_of<typename OperandOf<T>::type, T>(all) : attention_of<Acc<T>, T>(all);
}

// ---- what a call is going to do, from the functions above that decide it

// Scores that are computed for one head: whole strips of queries by panels of keys.
template <class E, class T> double visited_by_head(const AttentionArgs &args, int64_t batch, int64_t head) {
    Scoring<Acc<E>, T> scoring = Scoring<Acc<E>, T>::of(args, batch, head);
    if (has_few_queries(args)) {
        double keys = 0;
        for (int64_t chunk = 0; chunk < chunks_of(args); ++chunk) {
            const KeyRange range = keys_of_chunk(args, chunk);
            keys += double(larger(0, range.last - range.first));
        }
        return keys * double(args.queries);
    }
    scoring.narrow();
    double pairs = 0;
    for (int64_t query = 0; query < args.queries; query += kStripRows<E>) // blocks are whole strips
        for (int64_t block0 = 0; block0 < args.keys; block0 += kBlockKeys) {
            const int64_t rows = smaller(kStripRows<E>, args.queries - query),
                          end = smaller(block0 + kBlockKeys, args.keys);
            KeyRange piece = next_keys(scoring, query, rows, block0, end);
            for (; piece.first < piece.last; piece = next_keys(scoring, query, rows, piece.last, end))
                pairs += double(rows * (piece.last - piece.first));
        }
    return pairs;
}

template <class E, class T> void plan_attention_of(const Sequences &all, Plan &plan) {
    typedef Acc<E> A;
    const int64_t kv_heads = all.kv_heads(), threads = runtime::threads_here();
    int64_t decoding = 0, packed = 0, packed_together = 0, block = 0, chunks = 0, partials = 0, chunk_size = 0;
    int64_t elements = 0, decoded = 0, tasks = 0;
    bool in_place = true;
    for (int64_t s = 0; s < all.count; ++s) {
        const AttentionArgs &args = all.data[s];
        plan.visited += sum_over_heads(args, visited_by_head<E, T>);
        const int64_t heads = args.batches * args.kv_heads;
        const KvHead of{&args, 0, 0, args.kv_heads ? args.heads / args.kv_heads : 0};
        if (has_few_queries(args)) {
            const int64_t of_head = (chunks_of(args) + 1) * of.group * args.queries * partial_size<A>(args);
            decoding += heads;
            chunks += heads * chunks_of(args);
            partials += heads * of_head;
            chunk_size = larger(chunk_size, chunk_scratch<A>(of));
            decoded = larger(decoded, of_head + chunk_scratch<A>(of));
            elements += heads * args.keys * (args.dim + args.value_dim);
            tasks += heads;
        } else {
            packed = larger(packed, packed_size<E, T>(args));
            packed_together += heads * packed_size<E, T>(args);
            block = larger(block, Workspace<E>::size(args));
            in_place = in_place && lies_in_panels<E, T>(args.value_dim);
            tasks += heads * of.group * ceil_div(args.queries, kQueries<E>);
        }
    }
    const double work = work_of(all);
    int64_t size = 0;
    if (kv_heads == 0) {
        plan.path = "nothing to compute";
        return;
    }
    if (all_have_few_queries(all)) {
        plan.path = "few queries: keys and values are read once, where they lie, in chunks";
        plan.threads = runtime::threads_for(chunks, chunks_grain(chunks, elements));
        size = partials + plan.threads * chunk_size;
        tell(plan, "chunks", chunks);
    } else if (divides_blocks(work, kv_heads, threads)) {
        plan.path = "tiles, all heads packed first: threads divide blocks of queries";
        plan.threads = runtime::threads_for(tasks, 1);
        size = packed_together + plan.threads * larger(block, decoded);
        tell(plan, "tasks", tasks);
    } else {
        const int64_t at_once = heads_of_task(work, kv_heads, threads);
        plan.path = "tiles, a head packed and used by one thread: threads divide heads";
        tasks = ceil_div(kv_heads, at_once);
        plan.threads = runtime::threads_for(tasks, 1);
        size = plan.threads * (packed + block + decoded);
        tell(plan, "tasks", tasks);
        tell(plan, "heads_of_a_task", at_once);
    }
    plan.scratch = size * int64_t(sizeof(A));
    if (decoding > 0) {
        tell(plan, "heads_with_few_queries", decoding);
        tell(plan, "chunk_keys", kBlockKeys);
        tell(plan, "keys_at_once", kKeysAtOnce);
    }
    if (decoding < kv_heads) {
        tell(plan, "tile_rows", kStripRows<E>);
        tell(plan, "tile_columns", kTileColumns<E>);
        tell(plan, "block_queries", kQueries<E>);
        tell(plan, "block_keys", kBlockKeys);
        tell_whether(plan, "values_are_read_where_they_lie", in_place);
        tell_whether(plan, "pairs_are_multiplied_in_their_own_type", kPairs<E>);
    }
    tell(plan, "bits_of_the_sums", 8 * int64_t(sizeof(A)));
}
template <class T> void plan_attention(const AttentionArgs *sequences, int64_t count, Plan &plan) {
    const Sequences all{sequences, count};
    takes_pairs<T>(all) ? plan_attention_of<typename OperandOf<T>::type, T>(all, plan)
                        : plan_attention_of<Acc<T>, T>(all, plan);
}

} // namespace

void fill_attention(Kernels &table) {
    table.plan_attention[int(DType::f32)] = plan_attention<float>;
    table.plan_attention[int(DType::f64)] = plan_attention<double>;
    table.plan_attention[int(DType::f16)] = plan_attention<f16>;
    table.plan_attention[int(DType::bf16)] = plan_attention<bf16>;
    table.attention[int(DType::f32)] = attention<float>;
    table.attention[int(DType::f64)] = attention<double>;
    table.attention[int(DType::f16)] = attention<f16>;
    table.attention[int(DType::bf16)] = attention<bf16>;
}

} // namespace nf::NUMFORMER_LEVEL
