# What makes find_package(rnp_deploy CONFIG) work from where the library is installed.
include(CMakePackageConfigHelpers)
set(RNP_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/rnp_deploy)

install(TARGETS rnp EXPORT rnp_deploy
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/rnp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT rnp_deploy NAMESPACE rnp:: FILE rnp_deployTargets.cmake DESTINATION ${RNP_CMAKE_DIR})

# Where the inference library was found; users' own ONNXRUNTIME_ROOT goes before.
if(ONNXRuntime_LIBRARY)
  get_filename_component(RNP_ONNXRUNTIME_LIB_DIR "${ONNXRuntime_LIBRARY}" DIRECTORY)
  get_filename_component(RNP_ONNXRUNTIME_ROOT "${RNP_ONNXRUNTIME_LIB_DIR}" DIRECTORY)
endif()
configure_package_config_file(cmake/rnp_deployConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/rnp_deployConfig.cmake
  INSTALL_DESTINATION ${RNP_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/rnp_deployConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rnp_deployConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/rnp_deployConfigVersion.cmake DESTINATION ${RNP_CMAKE_DIR})
file(GLOB RNP_FIND_MODULES cmake/Find*.cmake)
install(FILES ${RNP_FIND_MODULES} DESTINATION ${RNP_CMAKE_DIR})
