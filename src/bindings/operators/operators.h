// The operators as C++ functions. library.cpp has their schemas.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace flashoptim::operators {

// fused_step.cpp
void step(ListArgument weights, ListArgument gradients, ListArgument state, std::vector<std::int64_t> places,
          ListArgument steps, const Tensor& bad_elements, const Tensor& table, const Tensor& hyperparameters,
          const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
          double gradient_factor, std::int64_t nonfinite, const std::optional<Tensor>& clip_coefficient,
          const std::optional<Tensor>& learning_rates, std::int64_t plan);
Tensor count_bad(ListArgument weights, ListArgument gradients, ListArgument corrections, const Tensor& table,
                 const Tensor& hyperparameters, const std::optional<Tensor>& grad_scale,
                 double gradient_factor, const std::optional<Tensor>& clip_coefficient, std::int64_t plan);
Tensor grad_norm(ListArgument weights, ListArgument gradients, const Tensor& table,
                 const Tensor& hyperparameters, double gradient_factor, std::int64_t plan);
void check_groups(const Tensor& hyperparameters, std::int64_t rule);

// two_passes.cpp
Tensor update_moments(ListArgument directions, ListArgument weights, ListArgument gradients,
                      ListArgument state, std::vector<std::int64_t> places, ListArgument steps,
                      const Tensor& bad_elements, const Tensor& table, const Tensor& hyperparameters,
                      const std::optional<Tensor>& grad_scale, double gradient_factor);
void apply_update(ListArgument weights, ListArgument corrections, ListArgument directions, ListArgument steps,
                  const Tensor& bad_elements, const Tensor& table, const Tensor& hyperparameters,
                  const Tensor& scalars);

// execution.cpp
void set_threads(std::int64_t threads);
std::int64_t backend();
void set_backend(std::int64_t backend);

// rule_table.cpp
std::string rule_table();

// formats.cpp
Tensor layout(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
              std::vector<std::int64_t> whole_shape, std::vector<std::int64_t> whole_strides,
              std::vector<std::int64_t> offset);
Tensor plan(const Tensor& layout, std::int64_t rule, const Tensor& hyperparameters, std::int64_t format,
            std::int64_t master_weight_bits, bool quantize, std::int64_t min_numel, std::int64_t min_numel_1d,
            std::int64_t weight_dtype);
std::tuple<Tensor, Tensor> encode_moment(const Tensor& values, const Tensor& layout, std::int64_t moment,
                                         std::int64_t storage, std::int64_t weight_dtype);
Tensor decode_moment(const Tensor& codes, const Tensor& scales, const Tensor& layout, std::int64_t moment,
                     std::int64_t storage, std::int64_t weight_dtype);
void check_moment(const Tensor& codes, const Tensor& scales, const Tensor& layout, const Tensor& plan,
                  std::int64_t moment);
std::tuple<Tensor, Tensor> split_weights(const Tensor& masters, std::int64_t weight_dtype,
                                         std::int64_t master_weight_bits, bool paper);
Tensor join_weights(const Tensor& weights, const Tensor& corrections, std::int64_t master_weight_bits,
                    bool paper);
Tensor correction_of(const Tensor& masters, const Tensor& weights, std::int64_t master_weight_bits,
                     bool paper);

}  // namespace flashoptim::operators
