// The extension sagittal._native: checks what it is given, and shares the work out.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bound.h"
#include "morph_module.h"
#include "pool.h"
#include "problem.h"
#include "projectors_module.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nb = nanobind;
using namespace sagittal;

namespace {

// ------------------------------------------------------------------------------------------ kernels

struct Kernel {
  const char* name;
  Compute compute;
  Quantise quantise;
};

bool tiles_allowed() {  // Linux grants the tile registers to those who ask
#if defined(__linux__) && defined(__x86_64__) && defined(SAGITTAL_X86)
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
#else
  return false;
#endif
}

#if defined(SAGITTAL_X86)
bool has_tiles() {
  unsigned a = 7, b, c = 0, d;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && tiles_allowed();
}
#endif

// The kernels that run here, the fastest last.
const std::vector<Kernel>& available() {
  static const std::vector<Kernel> found = [] {
    std::vector<Kernel> kernels{{"generic", generic::compute, generic::quantise}};
#if defined(SAGITTAL_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      kernels.push_back({"avx2", avx2::compute, avx2::quantise});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
      kernels.push_back({"avx512", avx512::compute, avx512::quantise});
      if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") && has_tiles()) kernels.push_back({"amx", amx::compute, amx::quantise});
    }
#endif
    return kernels;
  }();
  return found;
}

const Kernel& kernel_of(const std::string& name) {
  const auto& known = available();
  const auto found = std::find_if(known.begin(), known.end(), [&](const Kernel& k) { return name == k.name; });
  require(found != known.end(), "this kernel does not run here");
  return *found;
}

// ------------------------------------------------------------------------------------------ codings

template <typename T, std::size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

// Levels as bfloat16 numbers, in a unit in which they are rounded least; none where that is still too much.
float shrink_levels(const std::vector<float>& levels, std::vector<uint16_t>& words) {
  float best = 1, least = std::numeric_limits<float>::infinity(), power = 0;
  for (int i = 0; i < 64; ++i) power += levels[i % levels.size()] * levels[i % levels.size()];
  for (int step = 0; step < 256; ++step) {
    const float unit = 1 + step / 256.0f;
    std::vector<uint16_t> tried;
    float error = 0;
    for (int i = 0; i < 64; ++i) {
      const float x = levels[i % levels.size()] / unit;
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
      float y;
      std::memcpy(&y, &bits, 4);
      error += (x - y) * (x - y) * unit * unit;
      tried.push_back(uint16_t(bits >> 16));
    }
    if (error < least) least = error, best = unit, words = tried;
  }
  if (levels.size() > 64 || least > 2.5e-7f * power) words.clear();  // 5e-4 of a level
  return best;
}

// Put the components of each width into a plane, and take its levels. Runs are within groups of components.
void lay_out(Layout& c, const Array<uint8_t, 2>& bits, const std::vector<Array<float, 1>>& levels, int group) {
  const std::size_t H = bits.shape(0), C = bits.shape(1);
  require(H > 0 && H < 1 << 16 && C > 0 && C <= kWidest, "heads or their width are out of range");
  c.heads = int(H), c.components = int(C);
  c.runs.resize(H);
  c.order.resize(H);
  for (int b = 1; b <= 8; ++b) {
    int rows = 0;
    const int plane = int(c.bits.size());
    for (std::size_t h = 0; h < H; ++h) {
      auto& order = c.order[h];
      for (std::size_t i = 0; i < C; ++i) {
        require(bits.data()[h * C + i] <= 8, "codes have more than 8 bits");
        if (bits.data()[h * C + i] != b) continue;
        const int at = int((h * C + i) / group);
        auto& runs = c.runs[h];
        if (runs.empty() || runs.back().plane != plane || runs.back().group != at)
          runs.push_back({plane, b, rows, 0, int(order.size()), at});
        ++runs.back().count;
        order.push_back(int(i));
        ++rows;
      }
    }
    if (!rows) continue;
    require(c.bits.size() < levels.size() && levels[c.bits.size()].shape(0) == std::size_t(1) << b, "levels are missing");
    const auto& given = levels[c.bits.size()];
    std::vector<float> table(std::max<std::size_t>(16, given.shape(0)));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = given.data()[i % given.shape(0)];
    c.bits.push_back(b), c.rows.push_back(rows), c.levels.push_back(std::move(table));
  }
}

struct Held : Coding {
  std::optional<Array<int8_t, 3>> kept;  // the basis, which is not copied
};

Held coding(int width, int page, int scale, int group, bool gain, bool turned, Array<uint8_t, 2> bits,
            const std::vector<Array<float, 1>>& levels, Array<float, 2> factor, Array<float, 2> inverse,
            Array<float, 2> mean, std::optional<Array<int8_t, 3>> basis) {
  Held c;
  const std::size_t H = bits.shape(0), C = bits.shape(1), D = width;
  require(H > 0 && C > 0 && width > 0 && width <= 1 << 12, "heads or their width are out of range");
  require(page > 0 && page % kTile == 0 && page <= 1 << 12, "pages are of no whole tiles");
  require(scale >= 0 && scale <= 2 && group > 0 && (Scale(scale) != Scale::token || (H * C) % group == 0), "groups do not divide the components");
  require(!gain || Scale(scale) == Scale::fixed, "only a static coding has gains");
  require(factor.shape(0) == H && factor.shape(1) == C, "factors are of other components");
  require(inverse.shape(0) == H && inverse.shape(1) == D && mean.shape(0) == H && mean.shape(1) == D, "weights or means are of other heads");
  require(basis ? (basis->shape(0) == H || basis->shape(0) == 1) && basis->shape(1) == D && basis->shape(2) == C : C == D,
          "the basis is of other heads");
  c.width = width, c.page = page;
  c.scale = Scale(scale), c.group = c.scale == Scale::token ? group : int(H * C), c.gain = gain, c.turned = turned;
  c.factor.assign(factor.data(), factor.data() + H * C);
  c.inverse.assign(inverse.data(), inverse.data() + H * D);
  c.mean.assign(mean.data(), mean.data() + H * D);
  if (basis) c.basis = basis->data(), c.shared = basis->shape(0) == 1 && H > 1, c.kept = std::move(basis);
  lay_out(c, bits, levels, c.group);
  for (std::size_t i = 0; i < c.levels.size(); ++i) {
    const auto& table = c.levels[i];
    bool plain = true;
    for (int j = 0; j < 1 << c.bits[i]; ++j) plain &= table[j] == float(j);
    c.plain.push_back(plain);
    c.words.emplace_back();
    c.shrink.push_back(shrink_levels(table, c.words.back()));
  }
  return c;
}

Quantiser quantiser(const Array<uint8_t, 2>& bits, const std::vector<Array<float, 1>>& levels, const Array<float, 2>& spread,
                    const std::optional<Array<float, 1>>& gains) {
  Quantiser q;
  lay_out(q, bits, levels, int(bits.shape(0) * bits.shape(1)));
  require(spread.shape(0) == bits.shape(0) && spread.shape(1) == bits.shape(1), "spreads are of other components");
  require(!gains || gains->shape(0) == 256, "there are not 256 gains");
  q.gain = gains.has_value();
  q.spread.assign(spread.data(), spread.data() + spread.size());
  if (gains) q.gains.assign(gains->data(), gains->data() + 256);
  for (std::size_t i = 0; i < q.bits.size(); ++i) {
    const auto& levels_of = q.levels[i];
    std::vector<float> tree(levels_of.size());
    for (int b = 0; b < q.bits[i]; ++b)
      for (int j = 0; j < 1 << b; ++j) {
        const int at = (2 * j + 1) << (q.bits[i] - b - 1);  // of this many levels the tree's node is the end
        tree[(1 << b) + j] = (levels_of[at] + levels_of[at - 1]) / 2;
      }
    q.edges.push_back(std::move(tree));
  }
  return q;
}

// ------------------------------------------------------------------------------------------ a call

using Memory = std::pair<uintptr_t, std::size_t>;  // where, and how many bytes
using GivenPage = std::tuple<int64_t, std::vector<Memory>, std::optional<Memory>, std::optional<Memory>>;

// The keys, or the values, of a layer but for the recent tokens, checked. Who holds it holds the memory too.
struct Pages {
  int batch, heads;
  Side side;
};

template <typename T>
const T* memory(const Memory& m, std::size_t count, const char* what) {
  require(m.second == count * sizeof(T) && (m.first || !count) && m.first % alignof(T) == 0, what);
  return reinterpret_cast<const T*>(m.first);
}

std::size_t bytes_of(Number number) { return number == Number::f32 ? 4 : 2; }

Pages pages_of(int batch, int heads, int width, int number, const Held* coding, const Memory& kept_at, const Memory& kept,
               const std::vector<GivenPage>& pages) {
  require(batch > 0 && heads > 0 && heads < 1 << 16 && batch < 1 << 20, "there is no query");
  require(width > 0 && width <= 1 << 12 && number >= 0 && number <= 2, "the width or dtype of exact tokens is out of range");
  Side s;
  s.coding = coding, s.width = width, s.number = Number(number);
  s.kept_count = int64_t(kept_at.second / 4 / batch);
  s.kept_at = memory<int32_t>(kept_at, std::size_t(batch) * s.kept_count, "places of kept tokens have another size");
  s.kept = memory<char>(kept, batch * std::size_t(heads) * width * bytes_of(s.number) * s.kept_count, "kept tokens have another size");
  require(kept.first % 2 == 0, "tokens lie at odd addresses");
  require(coding || (pages.empty() && !s.kept_count), "pages have no coding");
  if (!coding) return {batch, heads, s};
  require(coding->heads == heads && coding->width == width, "the coding is of other heads");
  const std::size_t components = std::size_t(heads) * coding->components;
  for (const auto& [tokens, planes, scale, offset] : pages) {
    require(tokens > 0 && tokens < int64_t(1) << 40, "a page holds no tokens");
    Page page{s.quantised, tokens, (tokens + coding->page - 1) / coding->page * coding->page, {}};
    require(planes.size() == coding->bits.size(), "a page has another number of planes");
    for (std::size_t i = 0; i < planes.size(); ++i)
      page.planes.push_back(memory<uint8_t>(planes[i], std::size_t(batch) * coding->rows[i] * page.held / 8 * coding->bits[i], "a plane has another size"));
    if (coding->scale == Scale::fixed) {
      require(coding->gain == scale.has_value() && !offset, "gains and the coding disagree");
      if (scale) page.gain = memory<uint8_t>(*scale, std::size_t(batch) * heads * page.held, "gains have another size");
    } else {
      const std::size_t each = coding->scale == Scale::channel ? components * (page.held / coding->page) : components / coding->group * page.held;
      require(scale && offset, "a page has no scales");
      page.scale = memory<uint16_t>(*scale, batch * each, "scales have another size");
      page.offset = memory<uint16_t>(*offset, batch * each, "offsets have another size");
    }
    s.quantised += tokens;
    s.pages.push_back(std::move(page));
  }
  for (int64_t i = 0; i < batch * s.kept_count; ++i) require(s.kept_at[i] < s.quantised, "a kept token lies behind the pages");
  return {batch, heads, std::move(s)};
}

Side with_recent(const Pages& pages, int batch, int heads, const Memory& recent) {
  require(pages.batch == batch && pages.heads == heads, "pages are of other heads");
  Side s = pages.side;
  const std::size_t state = std::size_t(heads) * s.width * bytes_of(s.number) * batch;
  s.recent_count = int64_t(recent.second / state);
  s.recent = memory<char>(recent, state * s.recent_count, "recent tokens have another size");
  require(recent.first % 2 == 0, "tokens lie at odd addresses");
  return s;
}

// Share the tokens out into items; how depends on nothing but the pages.
std::vector<Item> items(const Problem& p) {
  const Side& coded = p.keys.coding ? p.keys : p.values;
  const int page = coded.coding ? coded.coding->page : kTile;
  const int64_t span = std::max(1, kSpan / page) * page, exact = coded.kept_count + coded.recent_count;
  std::vector<Item> found;
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.heads; ++h) {
      for (std::size_t i = 0; i < coded.pages.size(); ++i)
        for (int64_t at = 0; at < coded.pages[i].tokens; at += span)
          found.push_back({b, h, int(i), at, std::min(span, coded.pages[i].tokens - at)});
      for (int64_t at = 0; at < exact; at += span) found.push_back({b, h, -1, at, std::min(span, exact - at)});
    }
  return found;
}

// Put the items of each head together, in their order.
void combine(const Problem& p, const std::vector<Item>& all, const std::vector<float>& partials, const float* sinks, float* out) {
  const int D = p.values.width, each = p.queries * (2 + D);
  for (std::size_t from = 0, to; from < all.size(); from = to) {
    for (to = from; to < all.size() && all[to].batch == all[from].batch && all[to].head == all[from].head;) ++to;
    for (int g = 0; g < p.queries; ++g) {
      const std::size_t row = (std::size_t(all[from].batch) * p.heads + all[from].head) * p.queries + g;
      const float sink = sinks ? sinks[all[from].head * p.queries + g] : -std::numeric_limits<float>::infinity();
      float most = sink, sum = 0;
      for (std::size_t i = from; i < to; ++i) most = std::max(most, partials[i * each + g * (2 + D)]);
      float* to_row = out + row * D;
      std::fill_n(to_row, D, 0.0f);
      if (most == -std::numeric_limits<float>::infinity()) continue;  // nothing is seen
      if (sinks) sum = std::exp(sink - most);
      for (std::size_t i = from; i < to; ++i) {
        const float* part = partials.data() + i * each + g * (2 + D);
        const float share = std::exp(part[0] - most);
        sum += part[1] * share;
        for (int d = 0; d < D; ++d) to_row[d] += share * part[2 + d];
      }
      for (int d = 0; d < D; ++d) to_row[d] /= sum;
    }
  }
}

void attend(const std::string& kernel, int threads, int batch, int heads, int queries, const Memory& query, float scaling,
            const Pages& keys, const Pages& values, const Memory& recent_keys, const Memory& recent_values, const std::optional<Memory>& pads,
            const std::optional<Memory>& visible, float softcap, const std::optional<Memory>& sinks,
            const std::optional<std::tuple<int, Memory, Memory>>& rope, const Memory& out) {
  const Kernel& chosen = kernel_of(kernel);
  require(queries > 0 && queries <= 1 << 12, "there is no query");
  Problem p;
  p.batch = batch, p.heads = heads, p.queries = queries, p.softcap = softcap;
  p.keys = with_recent(keys, batch, heads, recent_keys), p.values = with_recent(values, batch, heads, recent_values);
  const std::size_t rows = std::size_t(batch) * heads * queries;
  const float* given = memory<float>(query, rows * p.keys.width, "the query has another size");
  std::vector<float> scaled(given, given + rows * p.keys.width);
  for (float& x : scaled) x *= scaling;
  p.query = scaled.data();
  float* result = const_cast<float*>(memory<float>(out, rows * p.values.width, "the result has another size"));
  p.tokens = p.keys.quantised + p.keys.recent_count;
  require(p.tokens > 0 && p.tokens == p.values.quantised + p.values.recent_count, "keys and values have different lengths");
  if (p.keys.coding && p.values.coding) {
    require(p.keys.coding->page == p.values.coding->page && p.keys.pages.size() == p.values.pages.size(), "keys and values have different pages");
    for (std::size_t i = 0; i < p.keys.pages.size(); ++i)
      require(p.keys.pages[i].tokens == p.values.pages[i].tokens, "keys and values have different pages");
    require(p.keys.kept_count == p.values.kept_count && std::equal(p.keys.kept_at, p.keys.kept_at + batch * p.keys.kept_count, p.values.kept_at),
            "keys and values keep different tokens");
  }
  if (pads) {
    p.one_pad = pads->second == 8;
    p.pads = memory<int64_t>(*pads, p.one_pad ? 1 : batch, "pads have another size");
    for (int b = 0; b < (p.one_pad ? 1 : batch); ++b)
      require(p.pads[b] >= 0 && p.pads[b] < int64_t(1) << 40, "pads are out of range");
  }
  if (visible) {
    p.one_visible = visible->second == std::size_t(p.tokens);
    p.visible = memory<uint8_t>(*visible, (p.one_visible ? 1 : batch) * std::size_t(p.tokens), "visible has another size");
  }
  const float* sink = sinks ? memory<float>(*sinks, std::size_t(heads) * queries, "sinks have another size") : nullptr;
  if (p.keys.coding && p.keys.coding->turned) {
    require(rope.has_value(), "keys before the position embedding need its tables");
    const auto& [pairs, coarse, fine] = *rope;
    require(pairs > 0 && 2 * pairs <= p.keys.width, "the position embedding is wider than a head");
    p.pairs = pairs, p.padded = (pairs + kTile - 1) / kTile * kTile;
    const std::size_t steps = coarse.second / (8 * p.padded);
    p.coarse = memory<float>(coarse, steps * 2 * p.padded, "the tables of the position embedding have another size");
    p.fine = memory<float>(fine, std::size_t(2) * pairs * 32, "the tables of the position embedding have another size");
    require(int64_t(steps) * kTile >= p.keys.quantised, "the tables of the position embedding are too short");
  }
  nb::gil_scoped_release released;
  static std::atomic<uint64_t> calls{0};
  const uint64_t call = ++calls;
  const std::vector<Item> all = items(p);
  const std::size_t each = std::size_t(queries) * (2 + p.values.width);
  std::vector<float> partials(all.size() * each);
  Pool::run(threads, int64_t(all.size()), [&](int64_t i) {
    thread_local Scratch scratch;
    const Item& next = all[std::min<std::size_t>(i + threads, all.size() - 1)];
    chosen.compute(p, all[i], next, scratch, call, partials.data() + i * each);
  });
  combine(p, all, partials, sink, result);
}

template <typename T>
T* writable(const Memory& m, std::size_t count, const char* what) {
  return const_cast<T*>(memory<T>(m, count, what));
}

using Triple = std::tuple<int64_t, int64_t, int64_t>;  // batch, component, token

// Write the codes and gains of new tokens; tell whether all their components are finite.
bool quantise(const std::string& kernel, int threads, const Quantiser& quantiser, const Triple& shape, const Memory& components,
              const Triple& strides, const std::vector<Memory>& planes, const std::optional<Memory>& gain) {
  const Kernel& chosen = kernel_of(kernel);
  const auto [batch, rows, tokens] = shape;
  require(rows == int64_t(quantiser.heads) * quantiser.components, "components are of other heads");
  require(batch > 0 && batch < 1 << 20 && tokens > 0 && tokens % 8 == 0 && tokens < int64_t(1) << 40, "tokens fill no whole bytes");
  Fresh fresh{&quantiser, tokens, nullptr, 0, 0, 0, {}, nullptr};
  std::tie(fresh.batch_stride, fresh.component_stride, fresh.token_stride) = strides;
  const auto far = [&](int64_t stride, int64_t count) {  // whether the last one lies outside, without overflow
    return stride < 0 || (count > 1 && stride > int64_t(components.second / 4) / (count - 1));
  };
  require(!far(fresh.batch_stride, batch) && !far(fresh.component_stride, rows) && !far(fresh.token_stride, tokens), "components have another size");
  const int64_t last = (batch - 1) * fresh.batch_stride + (rows - 1) * fresh.component_stride + (tokens - 1) * fresh.token_stride;
  require(last < int64_t(components.second / 4), "components have another size");
  fresh.components = memory<float>(components, components.second / 4, "components are no float32 numbers");
  require(planes.size() == quantiser.bits.size(), "there is another number of planes");
  for (std::size_t i = 0; i < planes.size(); ++i)
    fresh.planes.push_back(writable<uint8_t>(planes[i], std::size_t(batch) * quantiser.rows[i] * (tokens / 8) * quantiser.bits[i], "a plane has another size"));
  require(quantiser.gain == gain.has_value(), "gains and the coding disagree");
  if (gain) fresh.gain = writable<uint8_t>(*gain, std::size_t(batch) * quantiser.heads * tokens, "gains have another size");
  nb::gil_scoped_release released;
  const int64_t spans = (tokens + kSpan - 1) / kSpan, heads = quantiser.heads;
  std::atomic<bool> finite{true};
  Pool::run(threads, batch * heads * spans, [&](int64_t i) {
    thread_local std::vector<float> room;
    room.resize(std::size_t(quantiser.components) * kTile);
    const int64_t first = i % spans * kSpan;
    if (!chosen.quantise(fresh, int(i / spans / heads), int(i / spans % heads), first, std::min<int64_t>(kSpan, tokens - first), room.data()))
      finite = false;
  });
  return finite;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Held>(m, "Coding").def(
      "__init__",
      [](Held* self, int width, int page, int scale, int group, bool gain, bool turned, Array<uint8_t, 2> bits,
         const std::vector<Array<float, 1>>& levels, Array<float, 2> factor, Array<float, 2> inverse, Array<float, 2> mean,
         std::optional<Array<int8_t, 3>> basis) {
        new (self) Held(coding(width, page, scale, group, gain, turned, bits, levels, factor, inverse, mean, std::move(basis)));
      },
      nb::kw_only(), nb::arg("width"), nb::arg("page"), nb::arg("scale"), nb::arg("group"), nb::arg("gain"), nb::arg("turned"),
      nb::arg("bits"), nb::arg("levels"), nb::arg("factor"), nb::arg("inverse"), nb::arg("mean"), nb::arg("basis").none());
  nb::class_<Quantiser>(m, "Quantiser").def(
      "__init__",
      [](Quantiser* self, Array<uint8_t, 2> bits, const std::vector<Array<float, 1>>& levels, Array<float, 2> spread,
         std::optional<Array<float, 1>> gains) { new (self) Quantiser(quantiser(bits, levels, spread, gains)); },
      nb::kw_only(), nb::arg("bits"), nb::arg("levels"), nb::arg("spread"), nb::arg("gains").none());
  nb::class_<Pages>(m, "Pages").def(
      "__init__",
      [](Pages* self, int batch, int heads, int width, int number, const Held* coding, const Memory& kept_at, const Memory& kept,
         const std::vector<GivenPage>& pages) { new (self) Pages(pages_of(batch, heads, width, number, coding, kept_at, kept, pages)); },
      nb::kw_only(), nb::arg("batch"), nb::arg("heads"), nb::arg("width"), nb::arg("number"), nb::arg("coding").none(), nb::arg("kept_at"),
      nb::arg("kept"), nb::arg("pages"), nb::keep_alive<1, 6>());
  m.def("kernels", [] {
    std::vector<std::string> names;
    for (const Kernel& k : available()) names.push_back(k.name);
    return names;
  });
  m.def("attend", &attend, nb::arg("kernel"), nb::arg("threads"), nb::arg("batch"), nb::arg("heads"), nb::arg("queries"), nb::arg("query"),
        nb::arg("scaling"), nb::arg("keys"), nb::arg("values"), nb::arg("recent_keys"), nb::arg("recent_values"), nb::arg("pads").none(),
        nb::arg("visible").none(), nb::arg("softcap"), nb::arg("sinks").none(), nb::arg("rope").none(), nb::arg("out"));
  m.def("quantise", &quantise, nb::arg("kernel"), nb::arg("threads"), nb::arg("quantiser"), nb::arg("shape"), nb::arg("components"),
        nb::arg("strides"), nb::arg("planes"), nb::arg("gain").none());
  bind_projectors(m);
  bind_morph(m);
}
