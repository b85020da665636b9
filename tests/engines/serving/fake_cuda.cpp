#include "fake_cuda.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace {

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201, kInvalidHandle = 400, kIllegalAddress = 700;
constexpr std::size_t kRegionBytes = std::size_t{64} << 20;
constexpr std::size_t kAlignment = 512;

struct Stream {
  std::deque<std::function<void()>> work;
  bool foreign = false;
};

struct State {
  std::recursive_mutex mutex;
  std::byte* region = static_cast<std::byte*>(
      mmap(nullptr, kRegionBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  std::size_t limit_bytes = std::size_t{32} << 20;
  std::map<std::byte*, std::size_t> blocks;
  std::map<void*, std::unique_ptr<std::byte[]>> pinned;
  std::map<void*, std::unique_ptr<Stream>> streams;
  std::map<std::string, int> failing;
  std::function<void()> at_next_synchronisation;
  std::size_t allocations = 0, synchronisations = 0, contexts = 0, freed_early = 0;
  int sticky = 0;  // what went wrong in a stream
};

State& state() {
  static State& all = *std::make_unique<State>().release();
  return all;
}

int context_place = 0, foreign_place = 0;
void* const kContext = &context_place;
void* const kForeignContext = &foreign_place;
thread_local std::vector<void*> stack;

// Device memory may be touched as long as this lives.
struct Unlocked {
  Unlocked() { mprotect(state().region, kRegionBytes, PROT_READ | PROT_WRITE); }
  ~Unlocked() { mprotect(state().region, kRegionBytes, PROT_NONE); }
};

int begun(const char* function, bool needs_context = true) {
  const std::lock_guard lock(state().mutex);
  const auto failing = state().failing.find(function);
  if (failing != state().failing.end()) {
    const int code = failing->second;
    state().failing.erase(failing);
    return code;
  }
  if (needs_context && !fake_cuda::is_current()) {
    return kInvalidContext;
  }
  return 0;
}

Stream* stream_at(void* handle) {
  const auto found = state().streams.find(handle);
  return found == state().streams.end() ? nullptr : found->second.get();
}

void copy(void* to, const void* from, std::size_t bytes, bool to_device, bool from_device) {
  const bool fits =
      (!to_device || fake_cuda::is_allocated(to, bytes)) && (!from_device || fake_cuda::is_allocated(from, bytes));
  if (!fits) {
    state().sticky = kIllegalAddress;
    return;
  }
  std::memmove(to, from, bytes);
}

int queued_copy(const char* function, void* to, const void* from, std::size_t bytes, void* stream, bool to_device,
                bool from_device) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun(function); code != 0) {
    return code;
  }
  return fake_cuda::launch(stream, [=] { copy(to, from, bytes, to_device, from_device); });
}

void* pointer(std::uint64_t device) { return reinterpret_cast<void*>(device); }

}  // namespace

namespace fake_cuda {

void reset(std::size_t limit_bytes) {
  const std::lock_guard lock(state().mutex);
  state().limit_bytes = limit_bytes;
  state().blocks.clear();
  state().pinned.clear();
  state().streams.clear();
  state().failing.clear();
  state().at_next_synchronisation = nullptr;
  state().allocations = state().synchronisations = state().contexts = state().freed_early = 0;
  state().sticky = 0;
}

void fail_next(const std::string& function, int code) {
  const std::lock_guard lock(state().mutex);
  state().failing[function] = code;
}

int launch(void* stream, std::function<void()> work) {
  const std::lock_guard lock(state().mutex);
  Stream* found = stream_at(stream);
  if (found == nullptr || found->foreign) {
    return kInvalidHandle;
  }
  if (state().sticky != 0) {
    return state().sticky;
  }
  found->work.push_back(std::move(work));
  return 0;
}

void at_next_synchronisation(std::function<void()> call) {
  const std::lock_guard lock(state().mutex);
  state().at_next_synchronisation = std::move(call);
}

void* foreign_stream() {
  const std::lock_guard lock(state().mutex);
  auto stream = std::make_unique<Stream>();
  stream->foreign = true;
  void* handle = stream.get();
  state().streams[handle] = std::move(stream);
  return handle;
}

bool is_current() {
  const std::lock_guard lock(state().mutex);
  return !stack.empty() && stack.back() == kContext && state().contexts > 0;
}

bool is_allocated(const void* data, std::size_t bytes) {
  const std::lock_guard lock(state().mutex);
  auto* const place = static_cast<std::byte*>(const_cast<void*>(data));
  auto after = state().blocks.upper_bound(place);
  if (after == state().blocks.begin()) {
    return false;
  }
  const auto& [start, size] = *std::prev(after);
  return static_cast<std::size_t>(place - start) <= size && bytes <= size - static_cast<std::size_t>(place - start);
}

Counts counts() {
  const std::lock_guard lock(state().mutex);
  Counts all{};
  all.blocks = state().blocks.size();
  all.allocations = state().allocations;
  all.pinned = state().pinned.size();
  all.contexts = state().contexts;
  all.synchronisations = state().synchronisations;
  all.freed_early = state().freed_early;
  for (const auto& [start, size] : state().blocks) {
    all.used_bytes += size;
  }
  for (const auto& [handle, stream] : state().streams) {
    all.streams += stream->foreign ? 0 : 1;
    all.queued += stream->work.size();
  }
  return all;
}

}  // namespace fake_cuda

extern "C" {

int cuInit(unsigned) { return begun("cuInit", false); }

int cuGetErrorString(int code, const char** words) {
  static const std::map<int, const char*> kWords{
      {kInvalidValue, "invalid argument"},         {kOutOfMemory, "out of memory"},
      {100, "no CUDA-capable device is detected"}, {kInvalidContext, "invalid device context"},
      {kInvalidHandle, "invalid resource handle"}, {kIllegalAddress, "an illegal memory access was encountered"}};
  const auto found = kWords.find(code);
  *words = found == kWords.end() ? nullptr : found->second;
  return found == kWords.end() ? kInvalidValue : 0;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return begun("cuDriverGetVersion", false);
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? begun("cuDeviceGet", false) : 101;
}

int cuDeviceGetName(char* name, int bytes, int) {
  std::strncpy(name, "NVIDIA Stand-in", static_cast<std::size_t>(bytes));
  return begun("cuDeviceGetName", false);
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 16 ? 108 : attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
  return begun("cuDeviceGetAttribute", false);
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuDevicePrimaryCtxRetain", false); code != 0) {
    return code;
  }
  ++state().contexts;
  *context = kContext;
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int) {
  const std::lock_guard lock(state().mutex);
  return state().contexts-- > 0 ? 0 : kInvalidContext;
}

int cuCtxPushCurrent_v2(void* context) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuCtxPushCurrent_v2", false); code != 0) {
    return code;
  }
  stack.push_back(context);
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  if (stack.empty()) {
    return kInvalidContext;
  }
  *context = stack.back();
  stack.pop_back();
  return 0;
}

int cuStreamCreate(void** stream, unsigned flags) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuStreamCreate"); code != 0 || flags != 1) {
    return code != 0 ? code : kInvalidValue;
  }
  auto made = std::make_unique<Stream>();
  *stream = made.get();
  state().streams[*stream] = std::move(made);
  return 0;
}

int cuStreamDestroy_v2(void* stream) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuStreamDestroy_v2"); code != 0) {
    return code;
  }
  return state().streams.erase(stream) == 1 ? 0 : kInvalidHandle;
}

int cuStreamSynchronize(void* stream) {
  std::unique_lock lock(state().mutex);
  if (const int code = begun("cuStreamSynchronize"); code != 0) {
    return code;
  }
  Stream* found = stream_at(stream);
  if (found == nullptr) {
    return kInvalidHandle;
  }
  ++state().synchronisations;
  auto unlocked = std::make_unique<Unlocked>();
  for (; !found->work.empty(); found->work.pop_front()) {
    if (state().sticky == 0) {
      found->work.front()();
    }
  }
  unlocked.reset();
  const auto call = std::exchange(state().at_next_synchronisation, nullptr);
  const int code = state().sticky;
  lock.unlock();
  if (call != nullptr) {
    call();
  }
  return code;
}

int cuStreamGetCtx(void* stream, void** context) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuStreamGetCtx"); code != 0) {
    return code;
  }
  Stream* found = stream_at(stream);
  if (found == nullptr) {
    return kInvalidHandle;
  }
  *context = found->foreign ? kForeignContext : kContext;
  return 0;
}

int cuMemAlloc_v2(std::uint64_t* device, std::size_t bytes) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuMemAlloc_v2"); code != 0) {
    return code;
  }
  if (bytes == 0) {
    return kInvalidValue;
  }
  if (fake_cuda::counts().used_bytes + bytes > state().limit_bytes) {
    return kOutOfMemory;
  }
  std::byte* place = state().region;  // the first gap; one of kAlignment bytes
                                      // stays between blocks
  for (const auto& [start, size] : state().blocks) {
    if (static_cast<std::size_t>(start - place) >= bytes + kAlignment) {
      break;
    }
    place = start + (size + 2 * kAlignment - 1) / kAlignment * kAlignment;
  }
  if (static_cast<std::size_t>(place - state().region) + bytes > kRegionBytes) {
    return kOutOfMemory;
  }
  state().blocks[place] = bytes;
  ++state().allocations;
  const Unlocked unlocked;
  std::memset(place, 0xCD, bytes);
  *device = reinterpret_cast<std::uint64_t>(place);
  return 0;
}

// Other than the driver's it does not wait for the stream: work that still uses
// the block fails.
int cuMemFree_v2(std::uint64_t device) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuMemFree_v2"); code != 0) {
    return code;
  }
  state().freed_early += fake_cuda::counts().queued > 0 ? 1 : 0;
  return state().blocks.erase(static_cast<std::byte*>(pointer(device))) == 1 ? 0 : kInvalidValue;
}

int cuMemHostAlloc(void** host, std::size_t bytes, unsigned) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuMemHostAlloc"); code != 0) {
    return code;
  }
  auto made = std::make_unique<std::byte[]>(bytes);
  *host = made.get();
  state().pinned[*host] = std::move(made);
  return 0;
}

int cuMemFreeHost(void* host) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuMemFreeHost"); code != 0) {
    return code;
  }
  return state().pinned.erase(host) == 1 ? 0 : kInvalidValue;
}

int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, void* stream) {
  return queued_copy("cuMemcpyHtoDAsync_v2", pointer(to), from, bytes, stream, true, false);
}

int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, void* stream) {
  return queued_copy("cuMemcpyDtoHAsync_v2", to, pointer(from), bytes, stream, false, true);
}

int cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes, void* stream) {
  return queued_copy("cuMemcpyDtoDAsync_v2", pointer(to), pointer(from), bytes, stream, true, true);
}

int cuMemsetD8Async(std::uint64_t to, unsigned char value, std::size_t bytes, void* stream) {
  const std::lock_guard lock(state().mutex);
  if (const int code = begun("cuMemsetD8Async"); code != 0) {
    return code;
  }
  return fake_cuda::launch(stream, [=] {
    if (fake_cuda::is_allocated(pointer(to), bytes)) {
      std::memset(pointer(to), value, bytes);
    } else {
      state().sticky = kIllegalAddress;
    }
  });
}

}  // extern "C"
