/* Rows of numbers in the first-level cache: bfloat16 to float32 and back, sums, e^x and sine, as loops that compilers vectorise.

   A row of float32 is read and written where it is; one of bfloat16 goes through a buffer of the caller. All is computed in
   float32. Of the arguments no two are the same memory unless a function says so.
*/
#ifndef HYENA_DS_ROWS_H
#define HYENA_DS_ROWS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EACH(i, n) _Pragma("omp simd") for (long i = 0; i < (n); i++)
#define SUM(s, i, n) _Pragma(OF_PRAGMA(omp simd reduction(+ : s))) for (long i = 0; i < (n); i++)
#define OF_PRAGMA(...) #__VA_ARGS__

typedef struct {
    char *first;
    long batch, channel; /* elements from a sequence, and from a channel, to the next */
    int rounded;         /* whether the elements are bfloat16 */
} Rows;

static inline char *row_of(Rows x, long b, long c) {
    return x.first + (b * x.batch + c * x.channel) * (x.rounded ? 2 : 4);
}

static inline float bits_to_float(uint32_t bits) {
    union { uint32_t bits; float value; } both = {.bits = bits};
    return both.value;
}

static inline uint32_t float_to_bits(float value) {
    union { float value; uint32_t bits; } both = {.value = value};
    return both.bits;
}

/* To the nearest bfloat16, of two the even; every NaN becomes one. */
static inline uint16_t rounded(float x) {
    uint32_t bits = float_to_bits(x);
    uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
}

static inline void widen(const uint16_t *restrict x, long n, float *restrict out) {
    EACH(i, n) out[i] = bits_to_float((uint32_t)x[i] << 16);
}

static inline void narrow(const float *restrict x, long n, uint16_t *restrict out) {
    EACH(i, n) out[i] = rounded(x[i]);
}

/* The row in float32: where it is, or in the buffer. */
static inline float *row_in(char *row, int is_rounded, long n, float *buffer) {
    if (!is_rounded) return (float *)row;
    widen((const uint16_t *)row, n, buffer);
    return buffer;
}

/* Where to write a row that `row_out` then rounds. */
static inline float *row_for(char *row, int is_rounded, float *buffer) { return is_rounded ? buffer : (float *)row; }

static inline void row_out(const float *values, char *row, int is_rounded, long n) {
    if (is_rounded) narrow(values, n, (uint16_t *)row);
}

/* e^x to 1 unit in the last place, 0 below -87 and e^87 above 87. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x; /* NaN stays */
    x = x > 87.0f ? 87.0f : x;
    float k = rintf(x * 1.44269504f);
    float y = fmaf(k, -0.693359375f, x);
    y = fmaf(k, 2.12194440e-4f, y);
    float p = fmaf(y, 1.9875691500e-4f, 1.3981999507e-3f);
    p = fmaf(y, p, 8.3334519073e-3f);
    p = fmaf(y, p, 4.1665795894e-2f);
    p = fmaf(y, p, 1.6666665459e-1f);
    p = fmaf(y, p, 5.0000001201e-1f);
    p = fmaf(y * y, p, y) + 1.0f;
    return p * bits_to_float((uint32_t)((int32_t)k + 127) << 23);
}

/* Sine and cosine to 2 units in the last place of 1 for |x| < 10,000; 32,768 and more are not reduced. */
static inline void sine_cosine(float x, float *sine, float *cosine) {
    float k = rintf(x * 0.636619772f);
    float y = fmaf(k, -1.5707963705062866f, x);
    y = fmaf(k, 4.371139000186241e-08f, y);
    float y2 = y * y;
    float s = fmaf(y2, -1.9515295891e-4f, 8.3321608736e-3f);
    s = fmaf(s, y2, -1.6666654611e-1f);
    s = fmaf(s * y2, y, y);
    float c = fmaf(y2, 2.443315711809948e-5f, -1.388731625493765e-3f);
    c = fmaf(c, y2, 4.166664568298827e-2f);
    c = fmaf(c * y2, y2, fmaf(y2, -0.5f, 1.0f));
    uint32_t quarter = (uint32_t)(int32_t)k;
    float of_sine = quarter & 1u ? c : s, of_cosine = quarter & 1u ? s : c;
    *sine = bits_to_float(float_to_bits(of_sine) ^ ((quarter & 2u) << 30));
    *cosine = bits_to_float(float_to_bits(of_cosine) ^ (((quarter + 1u) & 2u) << 30));
}

#endif
