/* SIMULATED: a library that answers like NVML, so that the real bindings (nvidia-ml-py) run where there is no GPU. Tests only.
 * TORG_SIMULATED_GPUS=n   cards        TORG_SIMULATED_MIG=i    card i is cut into two slices
 * TORG_SIMULATED_LOST=i   card i fell off the bus          TORG_SIMULATED_ECC=i:n   card i counts n uncorrected errors
 * TORG_SIMULATED_HOT=FILE the cards that FILE names, as in "0 2", slow themselves down by heat, as long as it names them */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };
typedef void *device; /* 1 + index of a card; 100 + 10 * index + slice of a slice */

static long number(const char *name) { const char *text = getenv(name); return text ? atol(text) : -1; }
static long at(device d) { return (long)d; }
static int is_slice(device d) { return at(d) >= 100; }
static long card(device d) { return is_slice(d) ? (at(d) - 100) / 10 : at(d) - 1; }
static int lost(device d) { return card(d) == number("TORG_SIMULATED_LOST"); }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "SIMULATED error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "SIMULATED-1.0"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { long n = number("TORG_SIMULATED_GPUS"); *out = n < 0 ? 0 : n; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *out) { *out = (device)(long)(index + 1); return OK; }
int nvmlDeviceGetUUID(device d, char *out, unsigned size) {
  if (is_slice(d)) snprintf(out, size, "MIG-SIMULATED-%ld-%ld", card(d), (at(d) - 100) % 10);
  else snprintf(out, size, "GPU-SIMULATED-%ld", card(d));
  return OK;
}
int nvmlDeviceGetName(device d, char *out, unsigned size) {
  snprintf(out, size, is_slice(d) ? "SIMULATED 1g.10gb" : "SIMULATED GPU"); return OK;
}
int nvmlDeviceGetMemoryInfo(device d, unsigned long long *out) { /* total, free, used */
  out[0] = (is_slice(d) ? 10ULL : 80ULL) << 30; out[1] = out[0]; out[2] = 0; return OK;
}
int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) { (void)d; *major = 9; *minor = 0; return OK; }
int nvmlDeviceGetPciInfo_v3(device d, void *out) {
  struct { char legacy[16]; unsigned domain, bus, slot, id, subsystem; char bus_id[32]; } *info = out;
  memset(info, 0, sizeof *info); info->bus = 0x3b + card(d); return OK;
}
int nvmlDeviceGetMaxPcieLinkGeneration(device d, unsigned *out) { (void)d; *out = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(device d, unsigned *out) { (void)d; *out = 16; return OK; }
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *later) {
  if (number("TORG_SIMULATED_MIG") < 0) return NOT_SUPPORTED;
  *now = *later = card(d) == number("TORG_SIMULATED_MIG"); return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *out) { (void)d; *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned index, device *out) {
  if (index > 1) return NOT_FOUND;
  *out = (device)(100 + 10 * card(d) + (long)index); return OK;
}
static int hot(device d) {
  const char *path = getenv("TORG_SIMULATED_HOT"); FILE *file = path ? fopen(path, "r") : NULL;
  long number; int found = 0;
  while (file && fscanf(file, "%ld", &number) == 1) found |= number == card(d);
  if (file) fclose(file);
  return found;
}
int nvmlDeviceGetTemperature(device d, int sensor, unsigned *out) {
  (void)sensor; if (lost(d)) return LOST;
  *out = hot(d) ? 94 : 61; return OK;
}
int nvmlDeviceGetTotalEccErrors(device d, int kind, int counter, unsigned long long *out) {
  const char *text = getenv("TORG_SIMULATED_ECC"), *count = text ? strchr(text, ':') : NULL;
  (void)kind; (void)counter; if (lost(d)) return LOST;
  *out = count && atol(text) == card(d) ? strtoull(count + 1, NULL, 10) : 0; return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *out) { /* counts 1 J per call */
  static unsigned long long spent; if (lost(d)) return LOST;
  *out = 1000 * ++spent; return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long *out) { /* idle; or hardware slowdown, by heat */
  *out = hot(d) ? 0x08 | 0x40 : 0x01; return OK;
}
