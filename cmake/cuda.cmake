# The CUDA backend, numformer_cuda/_core: kernels by nvcc, the rest by the host's compiler. CUDA 12.4 and newer.
#
# nvcc: CMAKE_CUDA_COMPILER, else PATH, CUDA_HOME, /usr/local/cuda, else the packages of PyPI in the Python that builds:
# nvidia-cuda-nvcc, -runtime, -crt, -cccl and nvidia-nvvm, which lie together in site-packages/nvidia/cu13. cuBLAS: where
# that toolkit has none, the package nvidia-cublas.
set(NUMFORMER_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING
    "Devices to compile for: Ampere and Ada, Hopper with what it alone has, and PTX for later ones")

execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
  OUTPUT_VARIABLE site OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(nvidia_folders ${site}/nvidia/cu13)
# What builds without isolation may have the packages there, what builds in isolation on its path.
foreach(folder IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND nvidia_folders ${folder}/nvidia/cu13)
endforeach()

if(NOT CMAKE_CUDA_COMPILER)
  find_program(NUMFORMER_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda ${nvidia_folders} PATH_SUFFIXES bin)
  if(NOT NUMFORMER_NVCC)
    message(FATAL_ERROR "NUMFORMER_CUDA needs nvcc: in PATH, in CUDA_HOME, or by pip install nvidia-cuda-nvcc nvidia-nvvm "
                        "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl")
  endif()
  set(CMAKE_CUDA_COMPILER ${NUMFORMER_NVCC})
endif()
get_filename_component(toolkit ${CMAKE_CUDA_COMPILER} REALPATH)
get_filename_component(toolkit ${toolkit} DIRECTORY)
get_filename_component(toolkit ${toolkit} DIRECTORY)
if(EXISTS ${toolkit}/lib AND NOT EXISTS ${toolkit}/lib64) # PyPI's: nvcc itself looks into lib64
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${toolkit}/lib")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${NUMFORMER_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "NUMFORMER_CUDA needs CUDA 12.4 or newer, ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
set(toolkit ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT})
string(REGEX MATCH "^[0-9]+" cuda_major ${CMAKE_CUDA_COMPILER_VERSION})
if(cuda_major EQUAL 12)
  list(APPEND nvidia_folders ${site}/nvidia/cublas)
endif()

find_path(NUMFORMER_CUBLAS_INCLUDE cublasLt.h
          HINTS ${toolkit}/include ${toolkit}/targets/x86_64-linux/include PATHS ${nvidia_folders} PATH_SUFFIXES include)
find_library(NUMFORMER_CUBLASLT NAMES cublasLt libcublasLt.so.${cuda_major}
             HINTS ${toolkit}/lib64 ${toolkit}/lib PATHS ${nvidia_folders} PATH_SUFFIXES lib lib64)
if(NOT NUMFORMER_CUBLAS_INCLUDE OR NOT NUMFORMER_CUBLASLT)
  message(FATAL_ERROR "NUMFORMER_CUDA needs cuBLAS, which ${toolkit} has not: pip install nvidia-cublas "
                      "(with CUDA 12 nvidia-cublas-cu12)")
endif()

file(GLOB cuda_kernels CONFIGURE_DEPENDS csrc/cuda/launchers/*.cpp)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp)
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CUDA)
pybind11_add_module(numformer_cuda_core MODULE NO_EXTRAS ${cuda_sources} ${cuda_kernels} csrc/core/core.cpp)
set_target_properties(numformer_cuda_core PROPERTIES
  OUTPUT_NAME _core
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/numformer_cuda
  CUDA_RUNTIME_LIBRARY Static
  # Beside the package in site-packages: cuBLAS of PyPI for CUDA 13, for 12.
  INSTALL_RPATH "$ORIGIN/../nvidia/cu13/lib;$ORIGIN/../nvidia/cublas/lib")
target_compile_definitions(numformer_cuda_core PRIVATE NUMFORMER_CUDA_MODULE=_core)
if(NUMFORMER_CUDA_ARCHITECTURES MATCHES "90a") # else the kernels of *_hopper.cpp would be empty where they are launched
  target_compile_definitions(numformer_cuda_core PRIVATE NUMFORMER_CUDA_HOPPER)
endif()
target_include_directories(numformer_cuda_core PRIVATE csrc)
# The toolkit's own headers come first: cuBLAS of another version may lie beside others of its time.
target_include_directories(numformer_cuda_core SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} ${NUMFORMER_CUBLAS_INCLUDE})
target_compile_options(numformer_cuda_core PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow>)
if(NUMFORMER_WERROR)
  target_compile_options(numformer_cuda_core PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings> $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
target_link_libraries(numformer_cuda_core PRIVATE ${NUMFORMER_CUBLASLT})
hide_symbols(numformer_cuda_core)
install(TARGETS numformer_cuda_core DESTINATION numformer_cuda)
# numformer-cuda's own pyproject.toml names the Python files; a numformer that is built with its backend takes them from here.
if(NOT SKBUILD_PROJECT_NAME STREQUAL "numformer_cuda")
  install(DIRECTORY cuda/numformer_cuda DESTINATION . FILES_MATCHING PATTERN "*.py")
endif()
