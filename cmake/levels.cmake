# The kernels are compiled once per instruction set ("level"), each into its own namespace nf::<level>.
# NUMFORMER_LEVELS: names of the levels, lowest first. NUMFORMER_LEVEL_DEFINITIONS: tells the dispatcher which exist.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(NUMFORMER_LEVELS v2 v3 v4 v4bf16 v4amx)
  set(flags_v2 -march=x86-64-v2)
  set(flags_v3 -march=x86-64-v3)
  set(flags_v4 -march=x86-64-v4 -mprefer-vector-width=512)
  set(flags_v4bf16 -march=x86-64-v4 -mavx512bf16 -mprefer-vector-width=512)
  set(flags_v4amx ${flags_v4bf16} -mamx-tile -mamx-bf16)
  set(kernels_v4amx attention attention_backward ceiling matmul table) # of the other kernels it takes v4bf16's
  set(NUMFORMER_LEVEL_DEFINITIONS NUMFORMER_X86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(NUMFORMER_LEVELS neon)
  set(flags_neon "")
  set(NUMFORMER_LEVEL_DEFINITIONS NUMFORMER_AARCH64)
else()
  message(FATAL_ERROR "numformer has no kernels for ${CMAKE_SYSTEM_PROCESSOR}: x86-64 or aarch64 is needed")
endif()

set(NUMFORMER_ONLY_LEVEL "" CACHE STRING "Compile this level alone: for instrumented builds, which take long")
if(NUMFORMER_ONLY_LEVEL)
  if(kernels_${NUMFORMER_ONLY_LEVEL})
    message(FATAL_ERROR "NUMFORMER_ONLY_LEVEL: ${NUMFORMER_ONLY_LEVEL} has only some of the kernels")
  endif()
  set(NUMFORMER_LEVELS ${NUMFORMER_ONLY_LEVEL})
  list(APPEND NUMFORMER_LEVEL_DEFINITIONS NUMFORMER_ONLY_LEVEL=${NUMFORMER_ONLY_LEVEL})
endif()

if(APPLE AND CMAKE_OSX_ARCHITECTURES MATCHES ";")
  message(FATAL_ERROR "a universal build would need the kernels of both processors: build one wheel for each")
endif()

if(MSVC AND NOT CMAKE_NM)
  get_filename_component(compiler_folder ${CMAKE_CXX_COMPILER} DIRECTORY)
  find_program(CMAKE_NM llvm-nm HINTS ${compiler_folder})
endif()

file(GLOB kernel_sources CONFIGURE_DEPENDS csrc/kernels/*.cpp)
foreach(level IN LISTS NUMFORMER_LEVELS)
  set(sources ${kernel_sources})
  if(kernels_${level})
    list(TRANSFORM kernels_${level} REPLACE "(.+)" "csrc/kernels/\\1.cpp" OUTPUT_VARIABLE sources)
  endif()
  add_library(kernels_${level} OBJECT ${sources})
  target_compile_definitions(kernels_${level} PRIVATE NUMFORMER_LEVEL=${level} NUMFORMER_LEVEL_${level}
                             ${NUMFORMER_LEVEL_DEFINITIONS})
  set(flags ${flags_${level}} -fno-exceptions -fno-rtti)
  if(MSVC)
    list(TRANSFORM flags PREPEND "/clang:")
    list(APPEND flags /EHs-c-) # wins over the /EHsc that CMake starts with
  endif()
  target_compile_options(kernels_${level} PRIVATE ${flags})
  target_link_libraries(kernels_${level} PRIVATE numformer_options)
  # Code of a higher level must not leak into a lower one through a symbol that the linker merges.
  if(NOT CMAKE_NM)
    message(STATUS "no nm (llvm-nm): symbols of level ${level} are not checked")
    continue()
  endif()
  add_custom_command(
    OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/symbols_${level}.ok
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_symbols.py --nm ${CMAKE_NM}
            --level ${level} --stamp ${CMAKE_CURRENT_BINARY_DIR}/symbols_${level}.ok $<TARGET_OBJECTS:kernels_${level}>
    DEPENDS kernels_${level} $<TARGET_OBJECTS:kernels_${level}> ${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_symbols.py
    COMMAND_EXPAND_LISTS VERBATIM)
  add_custom_target(symbols_${level} ALL DEPENDS ${CMAKE_CURRENT_BINARY_DIR}/symbols_${level}.ok)
endforeach()
