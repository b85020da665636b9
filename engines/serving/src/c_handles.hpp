// What the handles of the C API are.
#pragma once

#include <memory>
#include <utility>

#include "rnp/rnp.h"
#include "rnp/rnp.hpp"

struct rnp_package {
  rnp::Package package;
};

struct rnp_controller {
  rnp_controller(const rnp::Package& package, rnp::ControllerOptions options)
      : controller(package, std::move(options)) {}
  rnp_controller(const rnp::Package& package, std::shared_ptr<rnp::Backend> backend, rnp::ControllerOptions options)
      : controller(package, std::move(backend), std::move(options)) {}

  rnp::Controller controller;
};
