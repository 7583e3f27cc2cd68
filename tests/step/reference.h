// Every rule in double, written from the papers, their authors' code and torch.optim's documentation. Nothing
// of the library's arithmetic is used here.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "flashoptim/rule/rules.h"

namespace flashoptim {

/// One parameter of the reference, in double.
struct Reference {
    std::vector<double> w, m, v, slow, last;
    std::int64_t t = 0;
    bool has_momentum = false;

    explicit Reference(const std::vector<float>& weight)
        : w(weight.begin(), weight.end()), m(w.size()), v(w.size()), slow(w.size()), last(w.size()) {}

    void step(Rule rule, const Hyperparameters& h, const std::vector<float>& gradient) {
        ++t;
        for (std::size_t n = 0; n < w.size(); ++n) {
            double g = h.maximize ? -static_cast<double>(gradient[n]) : static_cast<double>(gradient[n]);
            if (rule == Rule::kSGD || rule == Rule::kAdam) {
                g += h.weight_decay * w[n];
            } else if (rule != Rule::kAdan || h.no_prox) {
                w[n] *= 1.0 - decay_of_step(h);
            }
            switch (rule) {
                case Rule::kSGD:
                case Rule::kSGDW:
                    sgd(h, n, g);
                    break;
                case Rule::kAdam:
                case Rule::kAdamW:
                    adam(h, n, g);
                    break;
                case Rule::kLion:
                    lion(h, n, g);
                    break;
                case Rule::kAdEMAMix:
                    ademamix(h, n, g);
                    break;
                case Rule::kAdan:
                    adan(h, n, g);
                    break;
            }
        }
        has_momentum = true;
    }

private:
    static double decay_of_step(const Hyperparameters& h) {
        const double rate = h.fully_decoupled ? h.learning_rate / h.initial_learning_rate : h.learning_rate;
        return h.weight_decay * rate;
    }
    // torch.optim.SGD: the buffer is the gradient itself in the first step.
    void sgd(const Hyperparameters& h, std::size_t n, double g) {
        if (h.momentum == 0.0) {
            w[n] -= h.learning_rate * g;
            return;
        }
        m[n] = has_momentum ? h.momentum * m[n] + (1.0 - h.dampening) * g : g;
        w[n] -= h.learning_rate * (h.nesterov ? g + h.momentum * m[n] : m[n]);
    }
    // Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
    void adam(const Hyperparameters& h, std::size_t n, double g) {
        m[n] = h.beta1 * m[n] + (1.0 - h.beta1) * g;
        v[n] = h.beta2 * v[n] + (1.0 - h.beta2) * g * g;
        const double unbiased_m = m[n] / (1.0 - std::pow(h.beta1, static_cast<double>(t)));
        const double unbiased_v = v[n] / (1.0 - std::pow(h.beta2, static_cast<double>(t)));
        w[n] -= h.learning_rate * unbiased_m / (std::sqrt(unbiased_v) + h.epsilon);
    }
    // Chen et al. 2023, algorithm 2.
    void lion(const Hyperparameters& h, std::size_t n, double g) {
        const double c = h.beta1 * m[n] + (1.0 - h.beta1) * g;
        w[n] -= h.learning_rate * static_cast<double>((c > 0.0) - (c < 0.0));
        m[n] = h.beta2 * m[n] + (1.0 - h.beta2) * g;
    }
    // The code of Xie et al. 2022 (github.com/sail-sg/Adan). `slow` is the mean of differences.
    void adan(const Hyperparameters& h, std::size_t n, double g) {
        const auto step = static_cast<double>(t);
        const double difference = has_momentum ? g - last[n] : 0.0;
        last[n] = g;
        m[n] = h.beta1 * m[n] + (1.0 - h.beta1) * g;
        slow[n] = h.beta2 * slow[n] + (1.0 - h.beta2) * difference;
        const double ahead = g + h.beta2 * difference;
        v[n] = h.beta3 * v[n] + (1.0 - h.beta3) * ahead * ahead;
        const double mean = m[n] / (1.0 - std::pow(h.beta1, step));
        const double mean_difference = slow[n] / (1.0 - std::pow(h.beta2, step));
        const double root = std::sqrt(v[n] / (1.0 - std::pow(h.beta3, step)));
        w[n] -= h.learning_rate * (mean + h.beta2 * mean_difference) / (root + h.epsilon);
        if (!h.no_prox) w[n] /= 1.0 + decay_of_step(h);
    }
    // The code of Pagliardini et al. 2024 (github.com/apple/ml-ademamix).
    void ademamix(const Hyperparameters& h, std::size_t n, double g) {
        const auto step = static_cast<double>(t);
        const double alpha = step < h.alpha_warmup ? h.alpha * step / h.alpha_warmup : h.alpha;
        double beta3 = h.beta3;
        if (step < h.beta3_warmup) {
            const auto half_life = [](double beta) { return std::log(0.5) / std::log(beta + 1e-8) - 1.0; };
            const double done = step / h.beta3_warmup;
            const double now = (1.0 - done) * half_life(h.beta1) + done * half_life(h.beta3);
            beta3 = std::pow(0.5, 1.0 / (now + 1.0));
        }
        m[n] = h.beta1 * m[n] + (1.0 - h.beta1) * g;
        slow[n] = beta3 * slow[n] + (1.0 - beta3) * g;
        v[n] = h.beta2 * v[n] + (1.0 - h.beta2) * g * g;
        const double unbiased_m = m[n] / (1.0 - std::pow(h.beta1, step));
        const double unbiased_v = v[n] / (1.0 - std::pow(h.beta2, step));
        w[n] -= h.learning_rate * (unbiased_m + alpha * slow[n]) / (std::sqrt(unbiased_v) + h.epsilon);
    }
};

}  // namespace flashoptim
