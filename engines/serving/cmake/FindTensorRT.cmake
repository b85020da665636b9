# TensorRT 10.3 to 11, or TensorRT-RTX, with headers: the wheels on package indices have libraries alone. Pass
# -DTENSORRT_ROOT=DIR, an unpacked SDK; JetPack's and Debian packages' are found without. Also what its headers
# include: CUDA's, of the toolkit.
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY NAMES nvinfer tensorrt_rtx
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES lib lib64 targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/lib)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS ${TENSORRT_ROOT} ${CUDAToolkit_ROOT} ENV CUDAToolkit_ROOT ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES include)

set(TensorRT_missing)
if(NOT TensorRT_INCLUDE_DIR OR NOT TensorRT_LIBRARY)
  foreach(part "NvInfer.h:TensorRT_INCLUDE_DIR" "libnvinfer.so (or libtensorrt_rtx.so):TensorRT_LIBRARY")
    string(REGEX MATCH "^(.*):(.*)$" matched "${part}")
    if(NOT ${CMAKE_MATCH_2})
      list(APPEND TensorRT_missing "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  string(JOIN " and " TensorRT_missing ${TensorRT_missing})
  string(APPEND TensorRT_missing " of TensorRT: on Jetson it comes with JetPack 6 or newer (apt install \
libnvinfer-dev), elsewhere with the TensorRT or TensorRT-RTX SDK from developer.nvidia.com/tensorrt, unpacked and named \
by -DTENSORRT_ROOT=DIR (the Python wheels have no headers)")
endif()
if(NOT TensorRT_CUDA_INCLUDE_DIR)
  if(TensorRT_missing)
    string(APPEND TensorRT_missing "; and ")
  endif()
  string(APPEND TensorRT_missing "cuda_runtime_api.h of CUDA, which TensorRT's headers include: it comes with the CUDA \
toolkit, or JetPack, in /usr/local/cuda or where -DCUDAToolkit_ROOT=DIR says")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "there is no ${TensorRT_missing}; or build without it by -DRNP_TENSORRT=OFF")
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
  set_target_properties(TensorRT::TensorRT PROPERTIES
    IMPORTED_LOCATION "${TensorRT_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}")
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY TensorRT_CUDA_INCLUDE_DIR)
