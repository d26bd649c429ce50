/* The bodies of a tile between matrix products, each in one pass over memory: the same maths as ops/layer_norm.py, ops/gelu.py,
   ops/short_convolution.py and the sines of model/filter.py. Sums over tokens are made for a tile and then added to a total.

   B sequences of n tokens, D channels of the model; p_BCm are C = 3 D channels with the two tokens before, m = n + 2.
*/
#include "rows.h"

#define EPSILON 1e-5f
#define LINEAR 1.5957691216057308f /* 2 sqrt(2 / pi) */
#define CUBIC 0.07135481627362417f /* 0.044715 of it */

static void add_to(float *restrict total, const float *restrict sums, long n) { EACH(i, n) total[i] += sums[i]; }

static void statistics(const float *restrict r, long width, float *mean, float *rstd) {
    float sum = 0.0f, squares = 0.0f;
    SUM(sum, d, width) sum += r[d];
    float middle = sum / width;
    SUM(squares, d, width) squares += (r[d] - middle) * (r[d] - middle);
    *mean = middle;
    *rstd = 1.0f / sqrtf(squares / width + EPSILON);
}

/* x = norm(r) of B times n tokens; from a sequence of r, or of x, to the next are so many elements. */
void norm(long B, long n, long width, const float *r, long r_batch, const float *weight, const float *bias, char *x,
          long x_batch, int is_rounded) {
    float buffer[width];
    for (long b = 0; b < B; b++)
        for (long t = 0; t < n; t++) {
            const float *restrict row = r + b * r_batch + t * width;
            char *to = x + (b * x_batch + t * width) * (is_rounded ? 2 : 4);
            float *restrict out = row_for(to, is_rounded, buffer), mean, rstd;
            statistics(row, width, &mean, &rstd);
            EACH(d, width) out[d] = (row[d] - mean) * rstd * weight[d] + bias[d];
            row_out(out, to, is_rounded, width);
        }
}

/* out = dout + the gradient of r, which may take the place of dout; those of weight and bias are added up. */
void norm_backward(long rows, long width, char *dx, int is_rounded, const float *r, const float *weight,
                   const float *dout, float *out, float *dweight, float *dbias) {
    float buffer[width], normed[width], of_weight[width], of_bias[width];
    memset(of_weight, 0, sizeof of_weight);
    memset(of_bias, 0, sizeof of_bias);
    for (long t = 0; t < rows; t++) {
        const float *row = r + t * width, *d_out = dout + t * width;
        const float *restrict d_x = row_in(dx + t * width * (is_rounded ? 2 : 4), is_rounded, width, buffer);
        float mean, rstd, sum = 0.0f, product = 0.0f, *to = out + t * width;
        statistics(row, width, &mean, &rstd);
        EACH(d, width) {
            normed[d] = (row[d] - mean) * rstd;
            of_weight[d] += d_x[d] * normed[d];
            of_bias[d] += d_x[d];
        }
        SUM(sum, d, width) sum += d_x[d] * weight[d];
        SUM(product, d, width) product += d_x[d] * weight[d] * normed[d];
        sum /= width, product /= width;
        EACH(d, width) to[d] = d_out[d] + rstd * (d_x[d] * weight[d] - sum - normed[d] * product);
    }
    add_to(dweight, of_weight, width);
    add_to(dbias, of_bias, width);
}

/* out = r + y + bias; out may be r. */
void add_residual(long rows, long width, const float *r, char *y, int is_rounded, const float *bias, float *out) {
    float buffer[width];
    for (long t = 0; t < rows; t++) {
        const float *row = r + t * width;
        const float *more = row_in(y + t * width * (is_rounded ? 2 : 4), is_rounded, width, buffer);
        float *to = out + t * width;
        EACH(d, width) to[d] = row[d] + (more[d] + bias[d]);
    }
}

/* y = dout rounded, where it is; its sums over tokens are added to `sums`. */
void output_gradient(long rows, long width, const float *dout, char *y, int is_rounded, float *sums) {
    float of_tile[width];
    memset(of_tile, 0, sizeof of_tile);
    for (long t = 0; t < rows; t++) {
        const float *row = dout + t * width;
        EACH(d, width) of_tile[d] += row[d];
        if (is_rounded) narrow(row, width, (uint16_t *)y + t * width);
    }
    if (sums) add_to(sums, of_tile, width);
}

/* total += x, which is bfloat16. */
void add_rounded(long count, const uint16_t *restrict x, float *restrict total) {
    EACH(i, count) total[i] += bits_to_float((uint32_t)x[i] << 16);
}

static inline float gate(float x) { return 1.0f / (1.0f + exponential(-(x * fmaf(x * x, CUBIC, LINEAR)))); }

/* a = gelu(h + bias); a may be h. */
void gelu(long rows, long width, char *h, const float *bias, char *a, int is_rounded) {
    float buffer[width];
    long bytes = width * (is_rounded ? 2 : 4);
    for (long t = 0; t < rows; t++) {
        const float *row = row_in(h + t * bytes, is_rounded, width, buffer);
        float *out = row_for(a + t * bytes, is_rounded, buffer);
        EACH(i, width) {
            float x = row[i] + bias[i];
            out[i] = x * gate(x);
        }
        row_out(out, a + t * bytes, is_rounded, width);
    }
}

/* a = gelu(h + bias), which may be h; da becomes dh, whose sums over tokens are added to `sums`. */
void gelu_backward(long rows, long width, char *h, const float *bias, char *a, char *da, int is_rounded, float *sums) {
    float of_h[width], of_da[width], of_tile[width];
    memset(of_tile, 0, sizeof of_tile);
    long bytes = width * (is_rounded ? 2 : 4);
    for (long t = 0; t < rows; t++) {
        const float *row = row_in(h + t * bytes, is_rounded, width, of_h);
        float *out = row_for(a + t * bytes, is_rounded, of_h), *d = row_in(da + t * bytes, is_rounded, width, of_da);
        EACH(i, width) {
            float x = row[i] + bias[i], s = gate(x);
            float slope = s + x * s * (1.0f - s) * fmaf(x * x, 3.0f * CUBIC, LINEAR);
            out[i] = x * s;
            d[i] *= slope;
            of_tile[i] += d[i];
        }
        row_out(out, a + t * bytes, is_rounded, width);
        row_out(d, da + t * bytes, is_rounded, width);
    }
    add_to(sums, of_tile, width);
}

/* A row of p, n + 2 tokens without their bias: where nothing is to the left, what gives 0 with it. */
static float *projected(Rows p, long b, long c, long n, float bias, int starts, float *buffer) {
    float *row = row_in(row_of(p, b, c), p.rounded, n + 2, buffer);
    if (starts) row[0] = row[1] = -bias;
    return row;
}

static void short_filter(const float *restrict p, long n, const float *w, float in_bias, float bias, float *restrict q) {
    float all = bias + in_bias * (w[0] + w[1] + w[2]), w0 = w[0], w1 = w[1], w2 = w[2];
    EACH(t, n) q[t] = w2 * p[t + 2] + (w1 * p[t + 1] + (w0 * p[t] + all));
}

/* Of x0, x1, v, what the short filter makes of p: u = x1 v, dy = dz x0 and z = y x0, those that are wanted. */
void gates(long B, long D, long n, Rows p, const float *in_bias, const float *taps, const float *bias, int starts, Rows u,
           Rows dz, Rows dy, Rows y, Rows z) {
    float of_p[n + 2], x0[n], x1[n], v[n], in[n], out[n];
    for (long b = 0; b < B; b++)
        for (long c = 0; c < D; c++) {
            float *to[3] = {x0, x1, v};
            for (long part = u.first ? 2 : 0; part >= (dy.first || z.first ? 0 : 1); part--) {
                long channel = part * D + c;
                const float *row = projected(p, b, channel, n, in_bias[channel], starts, of_p);
                short_filter(row, n, taps + 3 * channel, in_bias[channel], bias[channel], to[part]);
            }
            if (u.first) {
                float *restrict made = row_for(row_of(u, b, c), u.rounded, out);
                EACH(t, n) made[t] = x1[t] * v[t];
                row_out(made, row_of(u, b, c), u.rounded, n);
            }
            Rows from[2] = {dz, y}, made_of[2] = {dy, z};
            for (int k = 0; k < 2; k++) {
                if (!made_of[k].first) continue;
                const float *restrict factor = row_in(row_of(from[k], b, c), from[k].rounded, n, in);
                float *restrict made = row_for(row_of(made_of[k], b, c), made_of[k].rounded, out);
                EACH(t, n) made[t] = factor[t] * x0[t];
                row_out(made, row_of(made_of[k], b, c), made_of[k].rounded, n);
            }
        }
}

/* dp from dq, whose last two are the neighbour's; sums over tokens are added up. */
static void to_projection(const float *restrict dq, const float *restrict p, long n, const float *w, float in_bias, Rows dp,
                          long b, long c, float *buffer, float *dtaps, float *dbias, float *din_bias) {
    float w0 = w[0], w1 = w[1], w2 = w[2], sum = 0.0f, s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, all = 0.0f;
    float *restrict made = row_for(row_of(dp, b, c), dp.rounded, buffer);
    _Pragma("omp simd reduction(+ : sum, s0, s1, s2, all)") for (long t = 0; t < n; t++) {
        float d = dq[t], g = w2 * d + w1 * dq[t + 1] + w0 * dq[t + 2];
        sum += d;
        s0 += d * (p[t] + in_bias);
        s1 += d * (p[t + 1] + in_bias);
        s2 += d * (p[t + 2] + in_bias);
        all += g;
        made[t] = g;
    }
    row_out(made, row_of(dp, b, c), dp.rounded, n);
    dtaps[0] += s0, dtaps[1] += s1, dtaps[2] += s2;
    *dbias += sum;
    *din_bias += all;
}

/* Backward of q = short filter(p), z = y q0, u = q1 q2: z again and dp. `next_BC2` is the gradient at q of the two tokens
   to the right, and becomes that of the first two here. */
void gates_backward(long B, long D, long n, Rows p, const float *in_bias, const float *taps, const float *bias, int starts,
                    Rows dz, Rows y, Rows du, float *next_BC2, Rows z, Rows dp, float *din_bias, float *dtaps, float *dbias) {
    float of_p[3][n + 2], q[3][n], dq[n + 2], of_dz[n], of_y[n], of_du[n], out[n];
    for (long b = 0; b < B; b++)
        for (long c = 0; c < D; c++) {
            const float *row[3];
            for (long part = 0; part < 3; part++) {
                long channel = part * D + c;
                row[part] = projected(p, b, channel, n, in_bias[channel], starts, of_p[part]);
                short_filter(row[part], n, taps + 3 * channel, in_bias[channel], bias[channel], q[part]);
            }
            const float *d_z = row_in(row_of(dz, b, c), dz.rounded, n, of_dz);
            const float *y_n = row_in(row_of(y, b, c), y.rounded, n, of_y);
            const float *d_u = row_in(row_of(du, b, c), du.rounded, n, of_du);
            float *restrict made = row_for(row_of(z, b, c), z.rounded, out);
            EACH(t, n) made[t] = y_n[t] * q[0][t];
            row_out(made, row_of(z, b, c), z.rounded, n);
            const float *factors[3][2] = {{d_z, y_n}, {d_u, q[2]}, {d_u, q[1]}};
            for (long part = 0; part < 3; part++) {
                long channel = part * D + c;
                const float *restrict left = factors[part][0], *restrict right = factors[part][1];
                float *carried = next_BC2 + 2 * (b * 3 * D + channel);
                EACH(t, n) dq[t] = left[t] * right[t];
                dq[n] = carried[0], dq[n + 1] = carried[1];
                carried[0] = dq[0], carried[1] = dq[1];
                to_projection(dq, row[part], n, taps + 3 * channel, in_bias[channel], dp, b, channel, out,
                              dtaps + 3 * channel, dbias + channel, din_bias + channel);
            }
        }
}

/* sums = a + bias, h = sin(f sums) and, where it is wanted, slope = cos(f sums); h may be a. Rows are channels. */
void sine(long F, long n, float *a, const float *bias, const float *f, float *h, float *slope) {
    for (long i = 0; i < F; i++) {
        float *row = a + i * n, *out = h + i * n, shift = bias[i], turns = f[i];
        if (slope) {
            float *restrict of_slope = slope + i * n;
            EACH(t, n) {
                float sum = row[t] + shift, s, c;
                sine_cosine(turns * sum, &s, &c);
                row[t] = sum;
                out[t] = s;
                of_slope[t] = c;
            }
        } else
            EACH(t, n) {
                float s, c;
                sine_cosine(turns * (row[t] + shift), &s, &c);
                out[t] = s;
            }
    }
}

/* Of h = sin(f sums): dh becomes the gradient of the sums; that of f, and its sums over tokens, are added up. */
void sine_backward(long F, long n, float *dh, const float *sums, const float *slope, const float *f, float *df, float *dbias) {
    for (long i = 0; i < F; i++) {
        float *restrict d = dh + i * n, of_f = 0.0f, of_bias = 0.0f, turns = f[i];
        const float *restrict sum = sums + i * n, *restrict c = slope + i * n;
        _Pragma("omp simd reduction(+ : of_f, of_bias)") for (long t = 0; t < n; t++) {
            float s = d[t] * c[t];
            of_f += s * sum[t];
            of_bias += s;
            d[t] = s * turns;
        }
        df[i] += of_f;
        dbias[i] += of_bias * turns;
    }
}

/* out = x (within before + shift), by channels; of the three, rows of so many elements. out may be x. */
void window(long D, long n, const float *x, long x_row, const float *within, long within_row, const float *before,
            float shift, float *out, long out_row) {
    for (long d = 0; d < D; d++) {
        const float *row = x + d * x_row, *restrict decay = within + d * within_row;
        float *to = out + d * out_row, scale = before[d];
        EACH(t, n) to[t] = row[t] * (decay[t] * scale + shift);
    }
}
