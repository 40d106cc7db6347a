// What a kernel is given: plain pointers, every one checked against its size before a kernel runs (module.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sagittal {

constexpr int kTile = 16;    // tokens of a tile: the lanes of a vector
constexpr int kStage = 16;   // tiles whose codes are copied together before they are unpacked
constexpr int kGroup = 4;    // tiles of keys that are turned together; divides kStage
constexpr int kSpan = 1024;  // tokens of a work item, about: it fixes the order of all sums
constexpr int kWidest = 1 << 12;  // components of a head, at most

enum class Scale { fixed, channel, token };
enum class Number { f32, bf16, f16 };

// Rows of one plane that belong to one head and share a scale.
struct Run {
  int plane, bits;
  int row;    // first row in the plane
  int count;  // rows
  int first;  // place of the first among the head's components, in plane order
  int group;  // of components that share a token's scale
};

// Where the codes of components lie, for all heads. A head's components are listed in plane order.
struct Layout {
  int heads, components;
  std::vector<int> bits;                   // of each plane
  std::vector<int> rows;                   // of each plane
  std::vector<std::vector<Run>> runs;      // [head]
  std::vector<std::vector<int>> order;     // [head]: components that hold codes
  std::vector<std::vector<float>> levels;  // [plane]: at least 16, repeated
};

// A codec's tables to read pages with.
struct Coding : Layout {
  int width, page;
  Scale scale;
  int group;
  bool gain, turned;
  std::vector<bool> plain;                   // [plane]: levels are 0, 1, 2 and so on
  std::vector<std::vector<uint16_t>> words;  // [plane]: levels / shrink as bfloat16, 64, repeated; or none
  std::vector<float> shrink;                 // [plane]
  std::vector<float> factor;   // (heads, components): spread and basis scale; ones if not static
  std::vector<float> inverse;  // (heads, width): 1 / weight
  std::vector<float> mean;     // (heads, width)
  const int8_t* basis = nullptr;  // (heads or 1, width, components)
  bool shared = false;            // one basis for all heads

  const int8_t* basis_of(int head) const {
    return basis + (shared ? 0 : std::size_t(head) * width * components);
  }
};

// A static codec's tables to write pages with.
struct Quantiser : Layout {
  bool gain;
  std::vector<float> spread;               // (heads, components)
  std::vector<float> gains;                // 256: what a held gain stands for
  std::vector<std::vector<float>> edges;   // [plane]: between levels, as a search tree: 2 i and 2 i + 1 follow i
};

// Components to quantise, and where their codes and gains go.
struct Fresh {
  const Quantiser* quantiser;
  int64_t tokens;  // a multiple of 8
  const float* components;  // (batch, heads * components, tokens), with these strides
  int64_t batch_stride, component_stride, token_stride;
  std::vector<uint8_t*> planes;  // [plane]: (batch, rows, tokens * bits / 8)
  uint8_t* gain;                 // (batch, heads, tokens), if the coding has gains
};

struct Page {
  int64_t start, tokens, held;
  std::vector<const uint8_t*> planes;  // [plane]: (batch, rows, held * bits / 8)
  const uint8_t* gain = nullptr;       // (batch, heads, held)
  const uint16_t* scale = nullptr;     // float16, (batch, components, blocks) or (batch, groups, held)
  const uint16_t* offset = nullptr;
};

// Keys or values of one layer.
struct Side {
  const Coding* coding = nullptr;  // none: all tokens are in recent
  int width = 0;
  std::vector<Page> pages;
  int64_t quantised = 0, kept_count = 0, recent_count = 0;
  const int32_t* kept_at = nullptr;  // (batch, kept_count)
  const char* kept = nullptr;        // (batch, heads, kept_count, width)
  const char* recent = nullptr;      // (batch, heads, recent_count, width)
  Number number = Number::f32;
};

struct Problem {
  int batch, heads, queries;  // queries of a key-value head
  const float* query;         // (batch, heads, queries, width), times scaling
  Side keys, values;
  const int64_t* pads = nullptr;  // (batch or 1)
  bool one_pad = true;
  const uint8_t* visible = nullptr;  // (batch or 1, tokens)
  bool one_visible = true;
  int64_t tokens = 0;
  float softcap = 0;  // 0 for none
  // cos and sin of 16 m positions, (rows, 2, padded), and of positions 0 to 31, (2, pairs, 32)
  const float *coarse = nullptr, *fine = nullptr;
  int pairs = 0, padded = 0;
};

struct Item {
  int batch, head;
  int page;  // -1: tokens that are held exactly
  int64_t first, count;  // tokens, counted from the page's start, or from the first exact one
};

// Memory that one thread computes in; `call` and `head` say what is prepared in it.
struct Scratch {
  std::vector<char> memory;
  uint64_t call = 0;
  int head = -1;
};

// Write for each query of an item: its largest logit, the sum of exp(logit - largest), and the sum of the
// values so weighted: queries x (2 + width of the values). The item that the thread will be given next is fetched.
using Compute = void (*)(const Problem&, const Item&, const Item& next, Scratch&, uint64_t call, float* partial);

// Quantise some tokens of one head; tell whether its components are finite. `room` holds a tile of them.
using Quantise = bool (*)(const Fresh&, int batch, int head, int64_t first, int64_t count, float* room);

#define DECLARE_KERNEL(name)                                                          \
  namespace name {                                                                    \
  void compute(const Problem&, const Item&, const Item&, Scratch&, uint64_t, float*); \
  bool quantise(const Fresh&, int, int, int64_t, int64_t, float*);                    \
  }
DECLARE_KERNEL(generic)
DECLARE_KERNEL(avx2)
DECLARE_KERNEL(avx512)
DECLARE_KERNEL(amx)
#undef DECLARE_KERNEL

}  // namespace sagittal
