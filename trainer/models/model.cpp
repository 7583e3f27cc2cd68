// From a preset's name to a model: the only place that knows every family.
#include "trainer/models/model.h"

#include "trainer/models/llama.h"

namespace flashoptim::trainer {

std::shared_ptr<Model> make_model(const ModelOptions& options, const ModelBuild& build) {
    return std::make_shared<Llama>(llama_config(options), build);
}

}  // namespace flashoptim::trainer
