/* A stand-in for libcuda, for machines without a GPU: its memory is the host's, its kernels are
   compiled for the host. What a real device would not forgive, it does not either: addresses that
   are not its own, sizes beyond an allocation, use without a context. */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201,
       NOT_FOUND = 500 };
enum { SLOTS = 256, ATTRIBUTES = 128 };

typedef void (*kernel)(uint64_t arguments, uint32_t grid, uint32_t block);

static struct { char *start; size_t size; } slots[SLOTS];
static __thread int current;
static char failing[64];
static int failure, interrupt_in;
static void *(*loader)(const char *text);

/* what tests set and read */
int attributes[ATTRIBUTES];
int devices = 1, launches, threads;
size_t total = (size_t)1 << 30, used, most;

void load_with(void *(*function)(const char *)) { loader = function; }
void fail(const char *function, int status) {
  strncpy(failing, function, sizeof failing - 1);
  failure = status;
}
void interrupt_after(int count) { interrupt_in = count; }

#define BEGIN if (failure && !strcmp(failing, __func__)) return failure
#define IN_CONTEXT BEGIN; if (!current) return INVALID_CONTEXT

static int owner(uint64_t address, size_t size) {
  for (int k = 0; k < SLOTS; k++) {
    uint64_t first = (uint64_t)slots[k].start;
    if (first && address >= first && address + size <= first + slots[k].size) return k;
  }
  return -1;
}

int cuInit(unsigned flags) { BEGIN; return devices ? OK : NO_DEVICE; }
int cuDeviceGet(int *device, int number) { BEGIN; *device = 7; return number < devices ? OK : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  BEGIN;
  *context = &current;
  return device == 7 ? OK : 101;
}
int cuCtxSetCurrent(void *context) { BEGIN; current = context == &current || context; return OK; }
int cuDeviceGetAttribute(int *value, int number, int device) {
  BEGIN;
  *value = attributes[number];
  return device == 7 ? OK : 101;
}
int cuGetErrorName(int status, const char **name) {
  *name = status == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : NULL;
  return *name ? OK : INVALID_VALUE;
}
int cuMemGetInfo_v2(size_t *left, size_t *all) {
  IN_CONTEXT;
  *left = total - used, *all = total;
  return OK;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  IN_CONTEXT;
  if (!size) return INVALID_VALUE;
  if (used + size > total) return OUT_OF_MEMORY;
  for (int k = 0; k < SLOTS; k++)
    if (!slots[k].start) {
      slots[k].start = malloc(size), slots[k].size = size;
      memset(slots[k].start, 0xA5, size);
      used += size, most = used > most ? used : most;
      *address = (uint64_t)slots[k].start;
      return OK;
    }
  return OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
  IN_CONTEXT;
  int k = owner(address, 0);
  if (k < 0 || (uint64_t)slots[k].start != address) return INVALID_VALUE;
  free(slots[k].start);
  used -= slots[k].size, slots[k].start = NULL;
  return OK;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
  IN_CONTEXT;
  if (owner(to, size) < 0) return INVALID_VALUE;
  memcpy((void *)to, from, size);
  return OK;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
  IN_CONTEXT;
  if (owner(from, size) < 0) return INVALID_VALUE;
  memcpy(to, (void *)from, size);
  return OK;
}
int cuModuleLoadData(void **module, const char *text) {
  IN_CONTEXT;
  *module = loader(text);
  return *module ? OK : 218;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  IN_CONTEXT;
  *function = module;
  return strlen(name) ? OK : NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
  IN_CONTEXT;
  if (!gx || !bx || gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || stream || extra)
    return INVALID_VALUE;
  uint64_t arguments = *(uint64_t *)parameters[0];
  int held = owner(arguments, 8);
  if (held < 0) return INVALID_VALUE;
  for (size_t k = 0; k < slots[held].size / 8; k++) {
    uint64_t value = ((uint64_t *)arguments)[k];
    if (value >> 40 && owner(value, 1) < 0) return 700; /* an address of the host */
  }
  launches++, threads = gx * bx;
  ((kernel)function)(arguments, gx, bx);
  if (interrupt_in && !--interrupt_in) raise(SIGINT);
  return OK;
}
int cuCtxSynchronize(void) { IN_CONTEXT; return OK; }
