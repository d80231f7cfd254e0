// One image: openvino_cpp MODEL.xml IMAGE OVERLAY.png ANSWER.json [confidence, 0.5]
#include <iostream>

#include "../common/picture.h"
#include "segmenter.hpp"

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) {
        std::cerr << "usage: " << argv[0] << " MODEL.xml IMAGE OVERLAY.png ANSWER.json [0.5]\n";
        return 2;
    }
    double confidence = 0.5;
    const char *reason = argc == 6 ? pipeline_confidence(argv[5], &confidence) : nullptr;
    if (reason != nullptr) {
        std::cerr << argv[0] << ": " << argv[5] << ": " << reason << "\n";
        return 2;
    }
    picture image = {0, 0, nullptr};
    try {
        check(argv[2], picture_read(argv[2], &image));
        Segmenter segment(argv[1]);
        segment(picture_frame(&image), confidence);
        const pipeline &found = segment.answer();
        check(argv[2], picture_draw(&image, found.instances, found.n, found.text));
        check(argv[3], picture_write_png(argv[3], &image));
        check(argv[4], pipeline_write_json(&found, argv[4], argv[2]));
        std::cout << found.n << " instances\n";
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << last_line(error.what()) << "\n";
        picture_close(&image);
        return 1;
    }
    picture_close(&image);
    return 0;
}
