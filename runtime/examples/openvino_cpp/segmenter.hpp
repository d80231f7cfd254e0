// A deployed OpenVINO model: frame in, instances out.
#pragma once

#include <openvino/openvino.hpp>

#include <array>
#include <stdexcept>
#include <string>

#include "../common/pipeline.h"

// Throws one line: what is wrong with what.
inline void check(const std::string &what, const char *reason) {
    if (reason != nullptr) {
        throw std::runtime_error(what + ": " + reason);
    }
}

// The reason in an error of OpenVINO's, which begins with the places in its source.
inline std::string last_line(std::string text) {
    text.erase(text.find_last_not_of(" \r\n") + 1);
    return text.substr(text.find_last_of("\r\n") + 1); // npos + 1 is 0
}

// One per thread: its buffers hold the last answer.
class Segmenter {
  public:
    // `xml` with its .bin beside it; 0 threads leave the number to OpenVINO.
    explicit Segmenter(const std::string &xml, int threads = 0) : around_(), xml_(xml) {
        try {
            ov::Core core;
            const auto model = core.read_model(xml);
            check(xml, model->has_rt_info({"boxseg"}) ? nullptr : PIPELINE_FOREIGN);
            const std::string json = model->get_rt_info<ov::Any>("boxseg").as<std::string>();
            check(xml, pipeline_open(&around_, json.data(), json.size()));
            // by default CPUs with bf16 units would compute all that is not int8 in 16 bits, also
            // what export keeps in fp32
            ov::AnyMap settings = {
                ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                ov::hint::execution_mode(ov::hint::ExecutionMode::ACCURACY),
            };
            if (around_.metadata.precision == BXS_PRECISION_FP32) {
                settings.insert(ov::hint::inference_precision(ov::element::f32));
            }
            if (threads > 0) {
                settings.insert(ov::inference_num_threads(threads));
            }
            request_ = core.compile_model(model, "CPU", settings).create_infer_request();
        } catch (const ov::Exception &error) {
            pipeline_close(&around_);
            throw std::runtime_error(xml + ": " + last_line(error.what()));
        } catch (...) {
            pipeline_close(&around_);
            throw;
        }
    }

    ~Segmenter() {
        pipeline_close(&around_);
    }
    Segmenter(const Segmenter &) = delete;
    Segmenter &operator=(const Segmenter &) = delete;

    // The instances lie in answer() until the next call.
    void operator()(const bxs_frame &frame, double confidence,
                    const bxs_deadline *deadline = nullptr) {
        check(xml_, pipeline_letterbox(&around_, &frame));
        const ov::Shape shape = {1, around_.map.height, around_.map.width, 3};
        request_.set_input_tensor(ov::Tensor(ov::element::u8, shape, around_.input));
        request_.infer();
        std::array<const void *, MOST_OUTPUTS> outputs;
        for (int i = 0; i < around_.outputs; i++) {
            const ov::Tensor values = request_.get_tensor(around_.output_names[i]);
            const bool fits = values.get_size() == pipeline_output_size(&around_, i);
            check(around_.output_names[i], fits ? nullptr : PIPELINE_UNFIT);
            if (pipeline_output_is_integer(&around_, i)) { // both check the type
                outputs[i] = values.data<const int32_t>();
            } else {
                outputs[i] = values.data<const float>();
            }
        }
        check(xml_, pipeline_answer(&around_, outputs.data(), confidence, deadline));
    }

    const pipeline &answer() const {
        return around_;
    }

  private:
    pipeline around_;
    std::string xml_;
    ov::InferRequest request_;
};
