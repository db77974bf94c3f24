/* Hand-written AVX-512/AVX2 kernels: the limit that the fused engine is measured against.
   Same generator (xoshiro128++ per path), same float32 Box-Muller, lanes = paths, by GCC's
   vector extensions. Built by reference.py */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define N 16
typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
#define INL static inline __attribute__((always_inline))
typedef struct { vu a, b, c, d; } gen;
INL vf bc(float x) { return x - (vf){}; }
INL vu bu(uint32_t x) { return x - (vu){}; }
INL vu rot(vu x, int k) { return (x << k) | (x >> (32 - k)); }
INL vu next(gen *g) {
  vu r = rot(g->a + g->d, 7) + g->a, t = g->b << 9;
  g->c ^= g->a; g->d ^= g->b; g->b ^= g->c; g->a ^= g->d; g->c ^= t; g->d = rot(g->d, 11);
  return r;
}
INL vf root(vf x) { vf o; for (int i = 0; i < N; i++) o[i] = sqrtf(x[i]); return o; }
INL vf pick(vi m, vf x, vf y) { return (vf)(((vi)x & m) | ((vi)y & ~m)); }
/* -2 ln x: the factor is in the coefficients. */
INL vf minus_twice_log(vf x) {
  vi ix = (vi)x - 0x3f400000, e = ix >> 23;
  vf f = (vf)((ix & 0x007fffff) + 0x3f400000) - 1.f, z = f * f, p = bc(-1.40753672584e-01f);
  p = p * f + 2.30292206200e-01f; p = p * f - 2.33539974800e-01f; p = p * f + 2.48402816920e-01f;
  p = p * f - 2.84986455740e-01f; p = p * f + 3.33361153300e-01f; p = p * f - 4.00014295300e-01f;
  p = p * f + 4.99999879860e-01f; p = p * f - 6.66666623480e-01f;
  return f * z * p + (z - 2.f * f) - __builtin_convertvector(e, vf) * 1.38629436112f;
}
INL void normals(gen *g, vf *n0, vf *n1) {
  vu a = next(g), b = next(g);
  vf u = __builtin_convertvector(a, vf) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
  vf r = root(minus_twice_log(u)); /* u <= 1, where the logarithm is exactly 0 */
  vu q = (b + 0x20000000u) >> 30;
  vf t = __builtin_convertvector((vi)(b - (q << 30)), vf) * 1.4629180792671596e-09f, z = t * t;
  vf s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * t + t;
  vf c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z
         - 0.5f * z + 1.f;
  vi odd = (vi)(q & 1u) != 0;
  vf ss = pick(odd, c, s), cc = pick(odd, s, c);
  *n1 = r * (vf)((vu)ss ^ ((q & 2u) << 30));
  *n0 = r * (vf)((vu)cc ^ (((q + 1u) & 2u) << 30));
}
INL gen load(const uint32_t *s, long b, long p) {
  gen g; memcpy(&g.a, s + b, 64); memcpy(&g.b, s + p + b, 64);
  memcpy(&g.c, s + 2 * p + b, 64); memcpy(&g.d, s + 3 * p + b, 64); return g;
}
/* states: (4, paths); x: (d, paths) */
void well(long paths, long steps, float dt, float q, const uint32_t *s, float *x) {
  for (long b = 0; b < paths; b += 2 * N) {
    gen g[2] = {load(s, b, paths), load(s, b + N, paths)};
    vf y[2]; memcpy(y, x + b, 128);
    for (long t = 0; t < steps; t += 2)
      for (int k = 0; k < 2; k++) {
        vf n0, n1; normals(&g[k], &n0, &n1);
        y[k] = y[k] + dt * (y[k] - y[k] * y[k] * y[k]) + q * n0;
        y[k] = y[k] + dt * (y[k] - y[k] * y[k] * y[k]) + q * n1;
      }
    memcpy(x + b, y, 128);
  }
}
void plane(long paths, long steps, float dt, float q, const uint32_t *s, float *x) {
  for (long b = 0; b < paths; b += 2 * N) {
    gen g[2] = {load(s, b, paths), load(s, b + N, paths)};
    vf u[2], v[2]; memcpy(u, x + b, 128); memcpy(v, x + paths + b, 128);
    for (long t = 0; t < steps; t++)
      for (int k = 0; k < 2; k++) {
        vf n0, n1, X = u[k], Y = v[k]; normals(&g[k], &n0, &n1);
        u[k] = X - dt * (X * X * X - X + 0.5f * X * Y * Y) + q * root(1.f + 0.5f * X * X) * n0;
        v[k] = Y - dt * (4.f * Y + 0.5f * X * X * Y) + 0.5f * q * root(1.f + Y * Y) * n1;
      }
    memcpy(x + b, u, 128); memcpy(x + paths + b, v, 128);
  }
}
void dense(long paths, long steps, float dt, float q, const uint32_t *s, float *x, const float *A) {
  for (long b = 0; b < paths; b += N) {
    gen g = load(s, b, paths);
    vf y[10], n[10], r[10];
    for (int i = 0; i < 10; i++) memcpy(&y[i], x + i * paths + b, 64);
    for (long t = 0; t < steps; t++) {
      for (int j = 0; j < 5; j++) normals(&g, &n[2 * j], &n[2 * j + 1]);
#pragma GCC unroll 10
      for (int i = 0; i < 10; i++) {
        vf a = 0.1f * y[i] * y[i] * y[i];
#pragma GCC unroll 10
        for (int j = 0; j < 10; j++) a += A[i * 10 + j] * y[j];
        r[i] = a;
      }
      for (int i = 0; i < 10; i++) y[i] = y[i] - dt * r[i] + q * n[i];
    }
    for (int i = 0; i < 10; i++) memcpy(x + i * paths + b, &y[i], 64);
  }
}
/* The same in d dimensions, d a multiple of 8: rows eight at a time, their sums in registers. */
void dense_large(long paths, long steps, float dt, float q, const uint32_t *s, float *x,
                 const float *A, long d) {
  vf *y = aligned_alloc(64, 3 * d * sizeof(vf)), *r = y + d, *n = r + d;
  for (long b = 0; b < paths; b += N) {
    gen g = load(s, b, paths);
    for (long i = 0; i < d; i++) memcpy(&y[i], x + i * paths + b, 64);
    for (long t = 0; t < steps; t++) {
      for (long j = 0; j < d; j += 2) normals(&g, &n[j], &n[j + 1]);
      for (long i = 0; i < d; i += 8) {
        vf a[8];
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) a[k] = 0.1f * y[i + k] * y[i + k] * y[i + k];
        for (long j = 0; j < d; j++) {
#pragma GCC unroll 8
          for (int k = 0; k < 8; k++) a[k] += A[(i + k) * d + j] * y[j];
        }
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) r[i + k] = a[k];
      }
      for (long i = 0; i < d; i++) y[i] = y[i] - dt * r[i] + q * n[i];
    }
    for (long i = 0; i < d; i++) memcpy(x + i * paths + b, &y[i], 64);
  }
  free(y);
}
/* First exits of the double well from x0 to x > 0, lanes refilled; tau: steps. */
long exits(long paths, float dt, float q, float x0, const uint32_t *s, int *tau) {
  long total = 0, nxt = 0;
  gen g[2]; vf x[2]; long id[2][N]; int st[2][N]; int live[2][N];
  for (int k = 0; k < 2; k++) for (int i = 0; i < N; i++) {
    id[k][i] = nxt; live[k][i] = nxt < paths; st[k][i] = 0; x[k][i] = x0;
    long p = live[k][i] ? nxt++ : 0;
    g[k].a[i] = s[p]; g[k].b[i] = s[paths + p]; g[k].c[i] = s[2 * paths + p]; g[k].d[i] = s[3 * paths + p];
  }
  for (;;) {
    int any = 0;
    for (int k = 0; k < 2; k++) {
      vi ex = (vi){}; gen G = g[k]; vf X = x[k];
      for (int r = 0; r < 32; r += 2) {
        vf n0, n1; normals(&G, &n0, &n1);
        X = X + dt * (X - X * X * X) + q * n0;
        vi m = (X > 0.f) & (ex == 0); ex = (m & (r + 1)) | (~m & ex);
        X = X + dt * (X - X * X * X) + q * n1;
        m = (X > 0.f) & (ex == 0); ex = (m & (r + 2)) | (~m & ex);
      }
      g[k] = G; x[k] = X;
      int hit = 0; for (int i = 0; i < N; i++) hit |= ex[i];
      for (int i = 0; i < N; i++) {
        if (hit && live[k][i] && ex[i]) {
          int t = st[k][i] + ex[i]; tau[id[k][i]] = t; total += t; st[k][i] = 0;
          if (nxt < paths) {
            long p = nxt++; id[k][i] = p; x[k][i] = x0;
            g[k].a[i] = s[p]; g[k].b[i] = s[paths + p]; g[k].c[i] = s[2 * paths + p]; g[k].d[i] = s[3 * paths + p];
          } else live[k][i] = 0;
        } else st[k][i] += 32;
        any |= live[k][i];
      }
    }
    if (!any) return total;
  }
}
INL vf expv(vf x) {
  x = pick(x < -87.f, bc(-87.f), x); x = pick(x > 87.f, bc(87.f), x);
  vf m = x * 1.44269504f + 12582912.f, n = m - 12582912.f;
  vi k = (vi)m - 0x4B400000;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f, p = bc(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.f) * (vf)((k + 127) << 23);
}
static uint32_t next1(uint32_t *g) {
  uint32_t r = g[0] + g[3], t = g[1] << 9; r = ((r << 7) | (r >> 25)) + g[0];
  g[2] ^= g[0]; g[3] ^= g[1]; g[1] ^= g[2]; g[0] ^= g[3]; g[2] ^= t;
  g[3] = (g[3] << 11) | (g[3] >> 21); return r;
}
/* Minibatch logistic regression: one path at a time, rows padded to 32 floats, B rows a step.
   mode 0: with replacement, 1: fresh subsets, 2: reshuffled epochs. w: (paths, 32). */
void logistic(long paths, long steps, int n, int B, int mode, float eta, const float *X,
              const float *y, const uint32_t *s, float *w) {
  int *perm = malloc(sizeof(int) * n);
  for (long p = 0; p < paths; p++) {
    uint32_t g[4] = {s[p], s[paths + p], s[2 * paths + p], s[3 * paths + p]};
    vf w0, w1; memcpy(&w0, w + 32 * p, 64); memcpy(&w1, w + 32 * p + N, 64);
    float sc = eta / B; int at = n;
    for (int i = 0; i < n; i++) perm[i] = i;
    for (long t = 0; t < steps; t++) {
      vf g0 = bc(0.f), g1 = bc(0.f);
      for (int b = 0; b < B; b += N) {
        int m = B - b < N ? B - b : N, id[N];
        for (int i = 0; i < m; i++) {
          if (mode == 0) id[i] = ((uint64_t)next1(g) * n) >> 32;
          else if (mode == 1) {
            int j = b + i + (int)(((uint64_t)next1(g) * (n - b - i)) >> 32);
            int q = perm[j]; perm[j] = perm[b + i]; perm[b + i] = q; id[i] = q;
          } else {
            if (at == n) {
              for (int j = n - 1; j > 0; j--) {
                int r = ((uint64_t)next1(g) * (j + 1)) >> 32, q = perm[j]; perm[j] = perm[r]; perm[r] = q;
              }
              at = 0;
            }
            id[i] = perm[at++];
          }
        }
        vf z = bc(0.f), yy = bc(0.f);
        for (int i = 0; i < m; i++) {
          vf r0, r1; memcpy(&r0, X + 32L * id[i], 64); memcpy(&r1, X + 32L * id[i] + N, 64);
          vf d = r0 * w0 + r1 * w1; float a = 0;
          for (int k = 0; k < N; k++) a += d[k];
          z[i] = a; yy[i] = y[id[i]];
        }
        vf c = 1.f / (1.f + expv(-z)) - yy;
        for (int i = 0; i < m; i++) {
          vf r0, r1; memcpy(&r0, X + 32L * id[i], 64); memcpy(&r1, X + 32L * id[i] + N, 64);
          g0 += c[i] * r0; g1 += c[i] * r1;
        }
      }
      w0 -= sc * g0; w1 -= sc * g1;
    }
    memcpy(w + 32 * p, &w0, 64); memcpy(w + 32 * p + N, &w1, 64);
  }
  free(perm);
}
