"""A SIMULATED libamd_smi.so under amdsmi's real bindings: two MI250X-like cards, whose names say that they are none.

The bindings look up every function of the library when they are imported, so all of them exist here; those without a body below say "not supported".
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from tests.support.simulated_library import compile_library, run_with

_BODIES = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef uint32_t u32; typedef uint64_t u64; typedef const char *device;
static long number(const char *name) { const char *text = getenv(name); return text ? atol(text) : -1; }
static long card(device d) { return d - (device)0x1000; }
u32 amdsmi_init(u64 f) { return 0; }
u32 amdsmi_shut_down(void) { return 0; }
u32 amdsmi_get_socket_handles(u32 *n, void **out) { if (out) out[0] = (void *)0x500; *n = 1; return 0; }
u32 amdsmi_get_processor_handles(void *s, u32 *n, void **out) {
  long cards = number("TORG_SIMULATED_AMD_GPUS");
  if (out) for (long i = 0; i < cards; i++) out[i] = (void *)(0x1000 + i);
  *n = cards; return 0;
}
u32 amdsmi_get_gpu_device_uuid(device d, u32 *n, char *out) { strcpy(out, "51ff740c-0000-1000-80SIMULATED-0"); out[31] += card(d); return 0; }
u32 amdsmi_get_gpu_memory_total(device d, u32 kind, u64 *out) { *out = 64ull << 30; return kind ? 2 : 0; }
u32 amdsmi_get_gpu_enumeration_info(device d, u32 *out) {
  if (card(d) == number("TORG_SIMULATED_AMD_NO_RENDER")) return 2;
  memset(out, 0, 272); out[0] = 128 + card(d); out[1] = card(d); return 0;
}
u32 amdsmi_get_gpu_asic_info(device d, char *out) {
  memset(out, 0, 256 * 3 + 128); strcpy(out, "SIMULATED Instinct");
  strcpy(out + 532, "1234"); *(u64 *)(out + 800) = 0x90a; return 0;
}
u32 amdsmi_get_gpu_driver_info(device d, char *out) { memset(out, 0, 768); strcpy(out, "SIMULATED-6.1"); return 0; }
u32 amdsmi_get_gpu_device_bdf(device d, u64 *out) { *out = (u64)(0x3b + card(d)) << 8; return 0; }
u32 amdsmi_get_energy_count(device d, u64 *out, float *step, u64 *when) {
  static u64 turns = 1000000; *out = turns += 100000; *step = 15.25f; *when = 1; return card(d) == 1 ? 2 : 0;
}
u32 amdsmi_get_temp_metric(device d, u32 sensor, u32 metric, int64_t *out) { *out = 61; return 0; }
u32 amdsmi_get_gpu_total_ecc_count(device d, u64 *out) {
  memset(out, 0, 64); out[1] = card(d) == 1 && number("TORG_SIMULATED_AMD_ECC") > 0 ? number("TORG_SIMULATED_AMD_ECC") : 0; return 0;
}
/* amdsmi_violation_status_t: 15 counters, here not told (all ones), then a byte for each violation that is active: prochot, power, socket, ... */
u32 amdsmi_get_violation_status(device d, u64 *out) {
  char *active = (char *)(out + 15); long hot = number("TORG_SIMULATED_AMD_VIOLATION");
  if (hot < 0) return 2;
  memset(out, 0xff, 15 * sizeof *out); memset(active, 0, 6); active[0] = -1; active[2] = card(d) == hot; return 0;
}
/* amdsmi_gpu_metrics_t: the throttle status that is the same for all cards lies 112 bytes into it; bit 36 is the hot spot, bit 0 the power limit */
u32 amdsmi_get_gpu_metrics_info(device d, char *out) {
  long hot = number("TORG_SIMULATED_AMD_THROTTLED");
  if (hot < 0) return 2;
  *(u64 *)(out + 112) = card(d) == hot ? 1ull << 36 : 1; return 0;
}
u32 amdsmi_get_power_cap_info(device d, u32 s, u64 *out) { memset(out, 0, 64); out[0] = 500000000; return 0; }
"""


def build(folder: Path) -> Path:
    """A folder for ROCM_PATH."""
    found = importlib.util.find_spec("amdsmi")
    assert found is not None
    assert found.origin is not None
    bound = re.findall(
        r"_libraries\['libamd_smi\.so'\]\.(\w+)", Path(found.origin).with_name("amdsmi_wrapper.py").read_text()
    )
    missing = sorted({name for name in bound if f" {name}(" not in _BODIES})
    source = folder / "simulated.c"
    source.write_text(_BODIES + "".join(f"u32 {name}(void) {{ return 2; }}\n" for name in missing))
    (folder / "lib").mkdir()
    compile_library(folder / "lib/libamd_smi.so", source)
    return folder


def run(library: Path, program: str, **settings: object) -> Any:
    """What `program` prints, as JSON. `gpus=2` becomes TORG_SIMULATED_AMD_GPUS=2."""
    return run_with({"ROCM_PATH": str(library)}, program, "TORG_SIMULATED_AMD", settings)
