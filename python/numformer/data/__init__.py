"""Text, pairs of sentences, vocabularies, and the batches that are drawn from them."""

from numformer.data.buckets import Pairs, pad_sources
from numformer.data.documents import encode_documents, read_documents
from numformer.data.language import JsonVocabulary, parse_vocabulary, read_vocabulary
from numformer.data.masking import MaskedText, mask_tokens, next_sentences
from numformer.data.pairs import ParallelText, Report, read_lines, read_pairs, read_parallel, split_lines
from numformer.data.shuffle import Permutation
from numformer.data.streams import Streams
from numformer.data.text import builtin_text, read_files, split, to_text, to_tokens
from numformer.data.token_file import TokenFile, is_token_file, token_dtype, write_tokens
from numformer.data.tokenizer import Tokenizer
from numformer.data.vocabulary import BytePairVocabulary, ByteVocabulary, Vocabulary, has_tokenizers, load_vocabulary
from numformer.data.windows import Windows
from numformer.packed import Packed

__all__ = [
    "BytePairVocabulary",
    "ByteVocabulary",
    "JsonVocabulary",
    "MaskedText",
    "Packed",
    "Pairs",
    "ParallelText",
    "Permutation",
    "Report",
    "Streams",
    "TokenFile",
    "Tokenizer",
    "Vocabulary",
    "Windows",
    "builtin_text",
    "encode_documents",
    "has_tokenizers",
    "is_token_file",
    "load_vocabulary",
    "mask_tokens",
    "next_sentences",
    "pad_sources",
    "parse_vocabulary",
    "read_documents",
    "read_files",
    "read_lines",
    "read_pairs",
    "read_parallel",
    "read_vocabulary",
    "split",
    "split_lines",
    "to_text",
    "to_tokens",
    "token_dtype",
    "write_tokens",
]
