/* GroupNorm and SiLU in one go over bfloat16 images in channels_last order. models/kernel.py compiles it, and calls it.

   Two passes over each image: sums by channel, then the values. Sums are in float, those of a group in double.
   BLOCK, from kernel.py, is how many channels' sums stay in registers; the channels are a multiple of it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float widen(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return value != value ? 0x7fc0 : rounded;
}

/* v / (1 + exp(-v)), the exponential to 2e-7 by a polynomial between powers of 2. */
static inline float silu(float v)
{
    float z = v < -87.0f ? 87.0f : v > 87.0f ? -87.0f : -v;
    float n = (z * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (z - n * 0.693145752f) - n * 1.42860677e-6f;
    float e = 1.0f + r * (1.0f + r * (0.5f + r * (0.16666667f + r * (0.041666668f + r * 0.008333334f))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return v / (1.0f + e * power);
}

/* x, y: n images of `pixels` times `channels`. shift: n times `channels`, added to x first, or NULL. */
void norm(const uint16_t *restrict x, const uint16_t *restrict shift, const uint16_t *restrict weight,
          const uint16_t *restrict bias, uint16_t *restrict y, int64_t n, int64_t pixels, int64_t channels,
          int64_t groups, double eps, int64_t with_silu)
{
    int64_t width = channels / groups;
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const uint16_t *restrict in = x + i * pixels * channels;
        uint16_t *restrict out = y + i * pixels * channels;
        float sum[channels], square[channels], scale[channels], offset[channels];

        for (int64_t c = 0; c < channels; c += BLOCK) {
            float s[BLOCK] = {0}, q[BLOCK] = {0};
            for (int64_t p = 0; p < pixels; p++)
                for (int k = 0; k < BLOCK; k++) {
                    float v = widen(in[p * channels + c + k]);
                    s[k] += v;
                    q[k] += v * v;
                }
            memcpy(sum + c, s, sizeof s);
            memcpy(square + c, q, sizeof q);
        }

        for (int64_t c = 0; c < channels; c += width) {
            double total = 0, squares = 0, count = (double)(width * pixels);
            for (int64_t k = c; k < c + width; k++) {
                double d = shift ? widen(shift[i * channels + k]) : 0;
                total += sum[k] + d * pixels;
                squares += square[k] + 2 * d * sum[k] + d * d * pixels;
            }
            double mean = total / count, variance = squares / count - mean * mean;
            double r = 1 / sqrt((variance < 0 ? 0 : variance) + eps);
            for (int64_t k = c; k < c + width; k++) {
                double d = shift ? widen(shift[i * channels + k]) : 0;
                scale[k] = (float)(r * widen(weight[k]));
                offset[k] = (float)(widen(bias[k]) + (d - mean) * r * widen(weight[k]));
            }
        }

        for (int64_t p = 0; p < pixels; p++) {
            const uint16_t *restrict from = in + p * channels;
            uint16_t *restrict to = out + p * channels;
            if (with_silu)
                for (int64_t k = 0; k < channels; k++) to[k] = narrow(silu(widen(from[k]) * scale[k] + offset[k]));
            else
                for (int64_t k = 0; k < channels; k++) to[k] = narrow(widen(from[k]) * scale[k] + offset[k]);
        }
    }
}
