// The same from C++.
#include <iostream>
#include <string>
#include <vector>

#include "scene.h"

int main(int argc, char **argv) {
    scene of = scene_make(argc > 1 ? static_cast<uint32_t>(std::stoul(argv[1])) : 1);
    std::vector<char> text(TEXT_BYTES);
    scene_answer(&of, text.data());
    std::cout << text.data();
    scene_free(&of);
}
