// One image: openvino_cpp MODEL.xml IMAGE OVERLAY.png ANSWER.json [confidence, 0.5]
#include <cstdlib>
#include <iostream>

#include "../common/picture.h"
#include "segmenter.hpp"

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) {
        std::cerr << "usage: " << argv[0] << " MODEL.xml IMAGE OVERLAY.png ANSWER.json [0.5]\n";
        return 2;
    }
    picture image = {0, 0, nullptr};
    try {
        check(picture_read(argv[2], &image));
        Segmenter segment(argv[1]);
        segment(picture_frame(&image), argc == 6 ? std::atof(argv[5]) : 0.5);
        const pipeline &found = segment.answer();
        check(picture_draw(&image, found.instances, found.n, found.text));
        check(picture_write_png(argv[3], &image));
        check(pipeline_write_json(&found, argv[4], argv[2]));
        std::cout << found.n << " instances\n";
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << "\n";
        picture_close(&image);
        return 1;
    }
    picture_close(&image);
    return 0;
}
