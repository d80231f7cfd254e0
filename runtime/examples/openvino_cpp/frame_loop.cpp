// A camera loop that never falls behind:
//
//     frame_loop MODEL.xml IMAGE [frames, 300] [fps, 30] [budget in ms, 33]
//
// The camera is a thread that shows the image, shifted a little each time. It puts frames into a
// mailbox that holds the newest one only. The loop drops a frame that is older than the budget when
// its turn comes, and gives post-processing what is left of the budget. Times run from the
// exposure to the answer.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../common/picture.h"
#include "segmenter.hpp"

using Clock = std::chrono::steady_clock;

struct Shot {
    std::vector<uint8_t> rgb;
    Clock::time_point taken;
};

// Holds the newest frame; an older one that nobody fetched is lost and counted.
class Mailbox {
  public:
    void put(Shot &shot) {
        const std::lock_guard<std::mutex> lock(mutex_);
        overwritten_ += is_full_;
        std::swap(held_, shot); // the camera gets a buffer back
        is_full_ = true;
        news_.notify_one();
    }

    void close() {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_closed_ = true;
        news_.notify_one();
    }

    // Waits for a frame; false when the camera has stopped.
    bool take(Shot &shot) {
        std::unique_lock<std::mutex> lock(mutex_);
        news_.wait(lock, [this] { return is_full_ || is_closed_; });
        if (!is_full_) {
            return false;
        }
        std::swap(held_, shot);
        is_full_ = false;
        return true;
    }

    size_t overwritten() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return overwritten_;
    }

  private:
    std::mutex mutex_;
    std::condition_variable news_;
    Shot held_;
    bool is_full_ = false, is_closed_ = false;
    size_t overwritten_ = 0;
};

static void run_camera(const picture &image, int frames, double fps, Mailbox &mailbox) {
    const size_t size = static_cast<size_t>(image.height) * image.width * 3;
    const auto start = Clock::now();
    Shot shot;
    for (int i = 0; i < frames; i++) {
        std::this_thread::sleep_until(start + std::chrono::duration<double>(i / fps));
        const size_t shift = static_cast<size_t>(i) * 3 % size;
        shot.rgb.resize(size);
        std::memcpy(shot.rgb.data(), image.rgb + shift, size - shift);
        std::memcpy(shot.rgb.data() + size - shift, image.rgb, shift);
        shot.taken = Clock::now();
        mailbox.put(shot);
    }
    mailbox.close();
}

static double milliseconds(Clock::duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
}

static int is_past(void *end) {
    return Clock::now() >= *static_cast<const Clock::time_point *>(end);
}

// The smallest time that `share` of all do not pass.
static double quantile(const std::vector<double> &sorted, double share) {
    const auto rank = static_cast<size_t>(share * static_cast<double>(sorted.size()));
    return sorted[std::min(rank, sorted.size() - 1)];
}

static void loop(Segmenter &segment, const picture &image, Mailbox &mailbox, double budget_ms) {
    const auto budget =
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(budget_ms / 1e3));
    std::vector<double> times;
    size_t too_old = 0;
    Shot shot;
    while (mailbox.take(shot)) {
        Clock::time_point end = shot.taken + budget;
        if (Clock::now() >= end) {
            too_old++;
            continue;
        }
        bxs_frame frame = picture_frame(&image);
        frame.data = shot.rgb.data();
        const bxs_deadline deadline = {is_past, &end};
        segment(frame, 0.5, &deadline);
        times.push_back(milliseconds(Clock::now() - shot.taken)); // a robot would act here
    }
    std::sort(times.begin(), times.end());
    const auto late = times.end() - std::upper_bound(times.begin(), times.end(), budget_ms);
    std::printf("%zu answered, %zu overwritten, %zu too old, %td answers over the budget\n",
                times.size(), mailbox.overwritten(), too_old, late);
    if (!times.empty()) {
        std::printf("p50 %.2f ms, p99 %.2f ms\n", quantile(times, 0.5), quantile(times, 0.99));
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 6) {
        std::cerr << "usage: " << argv[0] << " MODEL.xml IMAGE [frames] [fps] [budget ms]\n";
        return 2;
    }
    const int frames = argc > 3 ? std::atoi(argv[3]) : 300;
    const double fps = argc > 4 ? std::atof(argv[4]) : 30.0;
    const double budget_ms = argc > 5 ? std::atof(argv[5]) : 33.0;
    if (frames < 1 || !(fps > 0.0) || !(budget_ms > 0.0)) {
        std::cerr << argv[0] << ": frames, fps and budget must be above 0, got " << frames << ", "
                  << fps << " and " << budget_ms << "\n";
        return 2;
    }
    picture image = {0, 0, nullptr};
    try {
        check(argv[2], picture_read(argv[2], &image));
        Segmenter segment(argv[1], 1);
        segment(picture_frame(&image), 0.5); // the first run of an engine allocates and tunes
        Mailbox mailbox;
        std::thread camera(run_camera, std::cref(image), frames, fps, std::ref(mailbox));
        try {
            loop(segment, image, mailbox, budget_ms);
        } catch (...) {
            camera.join();
            throw;
        }
        camera.join();
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << last_line(error.what()) << "\n";
        picture_close(&image);
        return 1;
    }
    picture_close(&image);
    return 0;
}
