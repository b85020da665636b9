# TensorRT 10.3 to 11, or TensorRT-RTX, with headers: the wheels on package indices have libraries alone. Pass
# -DTENSORRT_ROOT=DIR, an unpacked SDK; JetPack's and Debian packages' are found without. Also what its headers
# include: CUDA's, of the toolkit.
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY NAMES nvinfer tensorrt_rtx
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES lib lib64 targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/lib)
set(TensorRT_cuda_places ENV CUDAToolkit_ROOT ENV CUDA_HOME PATHS /usr/local/cuda)
if(CUDAToolkit_ROOT)
  set(TensorRT_cuda_places ${CUDAToolkit_ROOT})
endif()
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS ${TENSORRT_ROOT} ${TensorRT_cuda_places} PATH_SUFFIXES include)

# In words, without semicolons, which CMake would take for lists.
set(TensorRT_why)
if(NOT TensorRT_INCLUDE_DIR)
  string(APPEND TensorRT_why "NvInfer.h is missing, and ")
endif()
if(NOT TensorRT_LIBRARY)
  string(APPEND TensorRT_why "libnvinfer.so (or libtensorrt_rtx.so) is missing, and ")
endif()
if(TensorRT_why)
  string(APPEND TensorRT_why "comes with JetPack 6 or newer on a Jetson (apt install libnvinfer-dev), elsewhere with the \
TensorRT or TensorRT-RTX SDK from developer.nvidia.com/tensorrt, unpacked and named by -DTENSORRT_ROOT=DIR (the Python \
wheels have no headers). ")
endif()
if(NOT TensorRT_CUDA_INCLUDE_DIR)
  string(APPEND TensorRT_why "cuda_runtime_api.h is missing, which TensorRT's headers include, and comes with JetPack or \
the CUDA toolkit, in /usr/local/cuda or where -DCUDAToolkit_ROOT=DIR says. ")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "${TensorRT_why}Or build without TensorRT by -DRNP_TENSORRT=OFF")
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
  set_target_properties(TensorRT::TensorRT PROPERTIES
    IMPORTED_LOCATION "${TensorRT_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}")
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY TensorRT_CUDA_INCLUDE_DIR)
