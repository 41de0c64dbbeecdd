"""The caption decoder: a GRU, LSTM or plain RNN that is told the image once and then writes words.

Letters in shapes: B batch, T tokens, D feature width, E embedding, H hidden, L layers, V words.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ...pipeline.text.vocab import BOS
from ..kernels.dropout import Dropout
from ..kernels.padding import inference_linear, pad_rows, round_rows
from ..kernels.recurrence import run_layer, take_step
from .attention import AdaptiveAttention, Attention
from .state import DecoderState

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
ATTENTIONS = {"soft": Attention, "adaptive": AdaptiveAttention}

# The recurrent state: (h,) for GRU and RNN, (h, c) for LSTM; each (L, R, H), see `DecoderState`.
Hidden = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a decoder is made of; saved with its weights.

    Attributes:
        cell: `gru`, `lstm` or `rnn`.
        feature_dim: D, width of an image's vector.
        vocab_size: V, special tokens included.
        embed_size: E, width of a word's vector.
        hidden_size: H, width of the recurrent state.
        num_layers: L, recurrent layers.
        dropout: on the cell's inputs, between its layers and on its outputs.
        image_as: `first-input` (Vinyals et al.) or `initial-state`.
        tie_embeddings: whether the word vectors are the output layer's matrix too.
        attention: `none`, `soft` (Xu et al. 2015) or `adaptive` (Lu et al. 2017).
        attention_size: A, width of the network that scores the places of the grid.
    """

    cell: str
    feature_dim: int
    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    num_layers: int = 1
    dropout: float = 0.5
    image_as: str = "first-input"
    tie_embeddings: bool = True
    attention: str = "none"
    attention_size: int = 256

    as_json = asdict


class Decoder(nn.Module):
    """Image features → words, in two forms that agree: `forward` to train, `step` to decode.

    Features are (N, D) pooled vectors, or with attention (N, P, D) grids. What a decoder with
    attention sees is added to its input and to its output, which costs less than to concatenate it
    and says the same: the matrices behind it tell the two apart. The gate of soft attention, β of
    the paper, has a value for each number of the context and not one for all.

    Source: Vinyals et al. 2015, arXiv:1411.4555; GRU after Cho et al. 2014, arXiv:1406.1078; tied
    embeddings after Press and Wolf 2017, arXiv:1608.05859; attention after Xu et al. 2015,
    arXiv:1502.03044, and Lu et al. 2017, arXiv:1612.01887.
    """

    # Features are brought to this length, so that the image speaks about as loud as a word whatever
    # the encoder's scale.
    feature_norm = 20.0

    feature_mean: Tensor
    grid_mean: Tensor
    attention: Attention

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        embed_size, hidden_size = config.embed_size, config.hidden_size
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        # Normal draws on the meta device, for weights to be loaded, make torch import its compiler,
        # which takes a second.
        vectors = torch.empty(config.vocab_size, embed_size)
        self.embedding = nn.Embedding(
            config.vocab_size, embed_size, _weight=vectors if vectors.is_meta else None
        )
        self.cell: nn.RNNBase = CELLS[config.cell](
            embed_size,
            hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        if config.image_as == "first-input":
            self.image = nn.Linear(config.feature_dim, embed_size)
        else:
            num_states = 2 if config.cell == "lstm" else 1
            state_size = num_states * config.num_layers * hidden_size
            self.image = nn.Linear(config.feature_dim, state_size)
        # Outputs must be as wide as the word vectors to be compared with them.
        output_size = embed_size if config.tie_embeddings else hidden_size
        self.project = (
            nn.Identity()
            if output_size == hidden_size
            else nn.Linear(hidden_size, output_size, bias=False)
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.tie_embeddings:
            self.output_weight = nn.Parameter(torch.empty(config.vocab_size, hidden_size))
        self.dropout = Dropout(config.dropout)
        if config.attention != "none":
            self.register_buffer("grid_mean", torch.zeros(config.feature_dim))
            self.place = nn.Linear(config.feature_dim, embed_size)
            self.attention = ATTENTIONS[config.attention](
                embed_size, hidden_size, config.attention_size
            )
            self.seen = nn.Linear(embed_size, hidden_size)  # what was seen, for the output
        if config.attention == "soft":
            self.gate = nn.Linear(hidden_size, embed_size)
        if config.attention == "adaptive":
            self.everywhere = nn.Linear(config.feature_dim, embed_size)  # the image at every word
        self._init_weights()

    def _init_weights(self) -> None:
        """Small normal word vectors, orthogonal recurrent matrices, LSTM forget gates open."""
        if self.output_bias.is_meta:
            return
        nn.init.normal_(self.embedding.weight, std=self.config.embed_size**-0.5)
        if not self.config.tie_embeddings:
            nn.init.normal_(self.output_weight, std=self.config.hidden_size**-0.5)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.detach().split(self.config.hidden_size):
                    nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
                if self.config.cell == "lstm" and name.startswith("bias_ih"):
                    size = self.config.hidden_size
                    parameter.detach()[size : 2 * size] = 1.0

    @torch.no_grad()
    def center_features(self, features: Tensor) -> None:
        """Measure images by how they differ from the mean of these, those of training.

        What all images share is most of a pooled vector and says nothing about any of them.

        Args:
            features: (N, D), or (N, P, D) for a decoder with attention.
        """
        if features.ndim == 3:
            self.grid_mean.copy_(_mean_direction(features))
            features = features.mean(1, dtype=torch.float32)
        self.feature_mean.copy_(_mean_direction(features))

    def init_state(self, features: Tensor) -> DecoderState:
        """Show the decoder its images.

        Args:
            features: (N, D), or (N, P, D) with attention; any float type.

        Returns:
            The state before BOS, one row an image.
        """
        image, memory = self._look(features)
        if self.config.image_as == "first-input":
            return DecoderState(self._run(image[:, None], None)[1], memory)
        # (N, S·L·H) → S states of (L, N, H), which must look like states: within ±1.
        shape = (len(image), -1, self.config.num_layers, self.config.hidden_size)
        hidden = image.tanh().view(shape).permute(1, 2, 0, 3).contiguous().unbind(0)
        return DecoderState(hidden, memory)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Advance by one word.

        Args:
            token_ids: (R,) int64, the previous word of each row; BOS at the first step.
            state: from `init_state` or the previous step.

        Returns:
            logits: (R, V), unnormalised.
            state: the next state.
        """
        # Beams often go on alike. Attention adds to each word what its beam has seen, and a GPU
        # would wait for the number of different words.
        decoding = not (torch.is_grad_enabled() or self.training)
        if decoding and self.config.attention == "none" and token_ids.device.type == "cpu":
            words, which = token_ids.unique(return_inverse=True)
            outputs, hidden = take_step(
                self.cell, self.embedding(words), which, state.hidden, state.sources
            )
        else:
            outputs, hidden = self._advance(self.embedding(token_ids), state.spread())
        return self.logits(outputs), replace(state, hidden=hidden, sources=None)

    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        owners: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Read whole captions, each word predicted from the image and the words before it.

        Args:
            features: (N, D), or (N, P, D) with attention; any float type.
            inputs: (B, T) int64, beginning with BOS.
            owners: (B,) int64, row of `features` of each caption's image; default 0 … B - 1.
            lengths: (B,) int64 on the CPU, words of each caption with BOS, descending: spares the
                work behind their ends. Default T each.

        Returns:
            (B, T, H) outputs before the vocabulary, for `logits`: the caller drops the padding
            first, so that no product is spent on it.
        """
        if owners is None:
            owners = torch.arange(len(features), device=inputs.device)
        words = self.dropout(self.embedding(inputs))
        if self.config.attention == "none" and self.config.image_as == "first-input":
            # As the word before BOS, in the same run: a step of its own would cost a GPU as much.
            image = self._look(features)[0].index_select(0, owners)
            words = torch.cat([image[:, None], words], 1)
            outputs = self._read(words, None, None if lengths is None else lengths + 1)[:, 1:]
        elif self.config.attention == "none":
            outputs = self._read(words, self.init_state(features).take(owners).hidden, lengths)
        elif self.config.attention == "adaptive" and self.config.cell != "lstm":
            outputs = self._read_then_look(words, self.init_state(features), owners, lengths)
        else:
            outputs = self._read_looking(words, self.init_state(features).take(owners), lengths)
        dropped: Tensor = self.dropout(outputs)
        return dropped

    def logits(self, outputs: Tensor) -> Tensor:
        """Score the vocabulary: (…, H) outputs of the cell → (…, V)."""
        words = self.project(outputs)
        decoding = words.ndim == 2 and not torch.is_grad_enabled()
        if decoding and words.device.type == "cpu":
            return inference_linear(words, self.word_weight, self.output_bias)
        return F.linear(words, self.word_weight, self.output_bias)

    @property
    def word_weight(self) -> Tensor:
        """(V, E or H), the matrix of the output layer."""
        return self.embedding.weight if self.config.tie_embeddings else self.output_weight

    @property
    def looks_at_grid(self) -> bool:
        """Whether its features are grids (N, P, D) and not vectors (N, D)."""
        return self.config.attention != "none"

    def start_tokens(self, batch_size: int) -> Tensor:
        """(B,) int64, BOS for every image, on the decoder's device."""
        return torch.full((batch_size,), BOS, device=self.embedding.weight.device)

    def _look(self, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the images: (N, E) first inputs or (N, S·L·H) states, and what attention looks at."""
        # In the weights' precision: the squares of 2,048 float16 values would not fit into float16.
        features = features.to(self.image.weight.dtype)
        memory: tuple[Tensor, ...] = ()
        if self.config.attention != "none":
            places = F.normalize(features, dim=-1) - self.grid_mean
            values = F.relu(self.place(places * self.feature_norm))
            memory = self.attention.remember(self.dropout(values))
            features = features.mean(1)
        directions = self.feature_norm * (F.normalize(features, dim=-1) - self.feature_mean)
        if self.config.attention == "adaptive":
            memory = (*memory, self.dropout(self.everywhere(directions)))
        image = self.image(directions)
        return self.dropout(image) if self.config.image_as == "first-input" else image, memory

    def _read_then_look(
        self, words: Tensor, state: DecoderState, owners: Tensor, lengths: Tensor | None
    ) -> Tensor:
        """Read (B, T, E) at once, then look for all words at once: (B, T, H).

        Adaptive attention looks after the cell has read a word, so that no word waits for what was
        seen before it. (The sentinel of an LSTM needs its memory after each word, which the fused
        cell does not tell.)
        """
        assert isinstance(self.attention, AdaptiveAttention)
        keys, values, image = state.memory
        (start,) = replace(state, memory=()).take(owners).hidden
        inputs = words + image[owners, None]
        outputs = self._read(inputs, (start,), lengths)
        previous = torch.cat([start[-1][:, None], outputs[:, :-1]], 1)
        # The words alone, in one line: an image's captions have many lengths, and half a batch
        # would be padding.
        real = _real_positions(words.shape[:2], lengths).to(words.device)
        num_words, num_rows = len(real), round_rows(len(real))
        read, inputs, previous = (
            pad_rows(x.flatten(0, 1)[real], num_rows) for x in (outputs, inputs, previous)
        )
        sentinel = self.attention.sentinel(inputs, previous, read)  # (R, H)
        slots, size = _slots_by_image(owners[real // words.shape[1]], len(state))
        queries, sentinels = (
            x.new_zeros(size.numel(), x.shape[1]).index_copy(0, slots, x).unflatten(0, size)
            for x in (read[:num_words], sentinel[:num_words])
        )
        context, _ = self.attention.look(queries, sentinels, (keys, values))
        seen = self.seen(pad_rows(context.flatten(0, 1)[slots], num_rows))
        looked = (read + seen)[:num_words]
        return torch.zeros_like(outputs).flatten(0, 1).index_copy(0, real, looked).view_as(outputs)

    def _read_looking(self, words: Tensor, state: DecoderState, lengths: Tensor | None) -> Tensor:
        """Read (B, T, E) word by word, as attention asks for: (B, T, H)."""
        num_captions, num_steps = words.shape[:2]
        # How many captions, the longest first, are not over at each step; and a few that are, of
        # which nobody will ask, so that products are of few sizes (see `aligned`).
        going = [num_captions] * num_steps
        if lengths is not None:
            counts = (lengths[:, None] > torch.arange(num_steps)).sum(0).tolist()
            going = [min(round_rows(count), num_captions) for count in counts]
        outputs = []
        # Not `words[:, position]`, whose gradient would be as large as all words at every step.
        for step_words, count in zip(words.unbind(1), going, strict=True):
            if count < len(state):
                hidden = tuple(part[:, :count].contiguous() for part in state.hidden)
                state = DecoderState(hidden, tuple(part[:count] for part in state.memory))
            output, hidden = self._advance(step_words[:count], state)
            state = replace(state, hidden=hidden)
            outputs.append(F.pad(output, (0, 0, 0, num_captions - count)))
        return torch.stack(outputs, 1)

    def _advance(self, words: Tensor, state: DecoderState) -> tuple[Tensor, Hidden]:
        """Run one step from (R, E) word vectors: (R, H) outputs and the next hidden state."""
        if self.config.attention == "none":
            outputs, hidden = self._run(words[:, None], state.hidden)
            return outputs[:, 0], hidden
        previous = state.hidden[0][-1]  # (R, H), of the uppermost layer
        if self.config.attention == "soft":
            context, _ = self.attention(self._by_image(previous, state), state.memory)
            context = context.flatten(0, 1)
            inputs = words + torch.sigmoid(self.gate(previous)) * context
            outputs, hidden = self._run(inputs[:, None], state.hidden)
            return outputs[:, 0] + self.seen(context), hidden
        assert isinstance(self.attention, AdaptiveAttention)
        keys, values, image = state.memory
        inputs = (self._by_image(words, state) + image[:, None]).flatten(0, 1)
        outputs, hidden = self._run(inputs[:, None], state.hidden)
        known = hidden[1][-1].tanh() if self.config.cell == "lstm" else outputs[:, 0]
        query, sentinel = (
            self._by_image(x, state)
            for x in (outputs[:, 0], self.attention.sentinel(inputs, previous, known))
        )
        context, _ = self.attention.look(query, sentinel, (keys, values))
        return outputs[:, 0] + self.seen(context.flatten(0, 1)), hidden

    def _by_image(self, rows: Tensor, state: DecoderState) -> Tensor:
        """(R, X) → (N, K, X), the rows of each image together."""
        return rows.view(-1, state.num_beams, rows.shape[1])

    def _run(self, inputs: Any, hidden: Hidden | None) -> tuple[Any, Hidden]:
        """Run torch's cell over (B, T, E) or a PackedSequence; the state is a tuple for every cell.

        On a GPU autocast would take float16, also where bfloat16 is asked for, in which gradients
        of a mean over thousands of words vanish. There the cell is left in float32 (as TF32).
        """
        has_one_state = self.config.cell != "lstm"
        if self.output_bias.is_cuda:
            dtype = self.output_bias.dtype
            inputs = inputs.to(dtype)
            hidden = hidden and tuple(part.to(dtype) for part in hidden)
        with torch.autocast("cuda", enabled=False):
            outputs, end = self.cell(inputs, hidden[0] if hidden and has_one_state else hidden)
        return outputs, (end,) if has_one_state else end

    def _read(self, inputs: Tensor, hidden: Hidden | None, lengths: Tensor | None) -> Tensor:
        """Run the cell over captions of these lengths, (B, T, E) → (B, T, H).

        No hidden state is that of nothing read yet, 0.
        """
        if lengths is None:
            outputs: Tensor = self._run(inputs, hidden)[0]
            return outputs
        packed = pack_padded_sequence(inputs, lengths, batch_first=True)
        if inputs.device.type == "cpu" and torch.is_grad_enabled():
            for layer in range(self.config.num_layers):
                if layer:
                    packed = packed._replace(data=self.dropout(packed.data))
                start = None if hidden is None else tuple(part[layer] for part in hidden)
                packed = run_layer(self.cell, layer, packed, start)
        else:
            packed, _ = self._run(packed, hidden)
        return pad_packed_sequence(packed, batch_first=True, total_length=inputs.shape[1])[0]


def _mean_direction(features: Tensor) -> Tensor:
    """(…, D) → (D,), the mean of vectors that are brought to length 1."""
    vectors = features.flatten(0, -2)
    # Some at a time: COCO's in float32, twice, would take 2 GB.
    sums = [F.normalize(part.float(), dim=-1).sum(0) for part in vectors.split(4096)]
    return torch.stack(sums).sum(0) / len(vectors)


def _real_positions(shape: torch.Size, lengths: Tensor | None) -> Tensor:
    """Where a (B, T) batch holds words, (R,) int64 of the flattened batch; `lengths` on the CPU."""
    if lengths is None:
        return torch.arange(shape.numel())
    return (torch.arange(shape[1]) < lengths[:, None]).flatten().nonzero()[:, 0]


def _slots_by_image(images: Tensor, num_images: int) -> tuple[Tensor, torch.Size]:
    """Set the words of each image side by side.

    Args:
        images: (R,) int64, the image of each word.
        num_images: N.

    Returns:
        slots: (R,) int64, the place of each word in a flattened (N, Q).
        size: (N, Q), Q the most words of an image, or a few more; on a GPU, the one thing here that
            waits for it.
    """
    counts = images.bincount(minlength=num_images)
    order = images.argsort(stable=True)
    most = -(-int(counts.max()) // 4) * 4  # few sizes for the products: see `aligned`
    # Place in the line of all, less what the images before take up.
    before = (counts.cumsum(0) - counts)[images]
    slots = torch.empty_like(images)
    slots[order] = torch.arange(len(images), device=images.device)
    return images * most + slots - before, torch.Size((num_images, most))
