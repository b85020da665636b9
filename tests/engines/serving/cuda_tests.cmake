# The CUDA parts on stand-ins for the driver and for TensorRT: no GPU is needed.
enable_testing()
set(RNP_TEST_DIR ${CMAKE_CURRENT_LIST_DIR})
find_package(Catch2 2 REQUIRED)

add_library(fake_cuda SHARED ${RNP_TEST_DIR}/fake_cuda.cpp)
target_compile_features(fake_cuda PRIVATE cxx_std_17)
rnp_flags(fake_cuda)

# trt_backend.cpp of its own, against the stand-in's header: it takes the place of the library's.
add_executable(rnp_cuda_tests
  ${RNP_TEST_DIR}/test_main.cpp
  ${RNP_TEST_DIR}/test_cuda_driver.cpp
  ${RNP_TEST_DIR}/test_cuda_memory.cpp
  ${RNP_TEST_DIR}/test_trt_backend.cpp
  ${RNP_TEST_DIR}/fake_tensorrt/fake_tensorrt.cpp
  src/trt_backend.cpp)
target_include_directories(rnp_cuda_tests PRIVATE src ${RNP_TEST_DIR} ${RNP_TEST_DIR}/fake_tensorrt)
target_compile_definitions(rnp_cuda_tests PRIVATE FAKE_CUDA_LIBRARY="$<TARGET_FILE:fake_cuda>")
target_link_libraries(rnp_cuda_tests PRIVATE rnp::rnp fake_cuda Catch2::Catch2 Threads::Threads)
rnp_flags(rnp_cuda_tests)
add_test(NAME cuda COMMAND rnp_cuda_tests)
