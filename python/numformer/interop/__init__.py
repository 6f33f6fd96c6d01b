"""numformer's attention inside other libraries: `interop.torch`, `interop.jax`, `interop.transformers`.

Each module imports its library, which numformer does not bring; nothing here is loaded before it is asked for.
"""
