// Tiles: pieces of (batch, channel, length) arrays as contiguous (steps, LANES) rows; and their memory.
#pragma once
#include <stdlib.h>

#include "selective_scan.h"
#include "vector_math.h"

namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Load rows from `from[lane * across + step * along]`; the values of lanes from `lanes` on are 0.
void load_tile(float *tile, const float *from, int64_t across, int64_t along, int64_t lanes, int64_t steps,
               int64_t pitch = LANES) {
    int64_t done = 0;
    if (lanes == LANES && across == 1) {
        for (; done < steps; ++done) store(tile + done * pitch, load_unaligned(from + done * along));
    } else if (lanes == LANES && along == 1) {
        for (; done + LANES <= steps; done += LANES) {
            Vec rows[LANES];
            for (int lane = 0; lane < LANES; ++lane) rows[lane] = load_unaligned(from + lane * across + done);
            transpose(rows);
            for (int step = 0; step < LANES; ++step) store(tile + (done + step) * pitch, rows[step]);
        }
    }
    for (; done < steps; ++done) {
        for (int64_t lane = 0; lane < LANES; ++lane)
            tile[done * pitch + lane] = lane < lanes ? from[lane * across + done * along] : 0.0f;
    }
}

void store_tile(const float *tile, float *to, int64_t across, int64_t along, int64_t lanes, int64_t steps) {
    int64_t done = 0;
    if (lanes == LANES && across == 1) {
        for (; done < steps; ++done) store_unaligned(to + done * along, load(tile + done * LANES));
    } else if (lanes == LANES && along == 1) {
        for (; done + LANES <= steps; done += LANES) {
            Vec rows[LANES];
            for (int step = 0; step < LANES; ++step) rows[step] = load(tile + (done + step) * LANES);
            transpose(rows);
            for (int lane = 0; lane < LANES; ++lane) store_unaligned(to + lane * across + done, rows[lane]);
        }
    }
    for (; done < steps; ++done)
        for (int64_t lane = 0; lane < lanes; ++lane) to[lane * across + done * along] = tile[done * LANES + lane];
}

inline void load_rows(float *tile, const Rows &rows, int64_t batch, int64_t channel, int64_t position, int64_t lanes,
                      int64_t steps) {
    const float *from = rows.data + batch * rows.batch + channel * rows.channel + position * rows.length;
    load_tile(tile, from, rows.channel, rows.length, lanes, steps);
}

inline void store_rows(const float *tile, const Rows &rows, int64_t batch, int64_t channel, int64_t position,
                       int64_t lanes, int64_t steps) {
    float *to = rows.data + batch * rows.batch + channel * rows.channel + position * rows.length;
    store_tile(tile, to, rows.channel, rows.length, lanes, steps);
}

// Memory of one call, freed by the destructor.
struct Block {
    char *data = nullptr;
    bool allocate(int64_t bytes) {
        data = static_cast<char *>(aligned_alloc(64, ceil_div(bytes, 64) * 64 + 64));
        return data != nullptr;
    }
    ~Block() { free(data); }
};

void add_to_doubles(double *sums, Vec values) {
    for (int lane = 0; lane < LANES; ++lane) sums[lane] += values[lane];
}

}  // namespace
