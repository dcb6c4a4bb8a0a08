"""What both ends have to agree on, and what the Go client does alike. Each stands beside the Go constant whose value it has; a test
compares them."""

PROTOCOL = "1.4"  # internal/rpc.Version
DEFAULT_PORT = 7600  # client.DefaultPort
MAX_MESSAGE_BYTES = 32 << 20  # internal/rpc.MaxMessageBytes
KEEPALIVE_SECONDS = 10.0  # internal/rpc.keepaliveTime
KEEPALIVE_TIMEOUT_SECONDS = 5.0  # internal/rpc.keepaliveTimeout
RECONNECT_SECONDS = 1.0  # internal/rpc.reconnectDelay
# About how many bytes of tensors go in one message and its answer, so few that what a holder keeps for messages is little; the
# same where nothing attends, since such steps come as fast as they can be taken; and the most tokens of a step.
STEP_BYTES = 8 << 20  # client.maxStepBytes
APPEND_BYTES = 2 << 20  # client.maxAppendBytes
MAX_STEP_TOKENS = 1 << 16  # shard.MaxStepTokens
# How many steps go by until the codec that seems slower is tried again.
PROBE_EVERY = 64  # client.probeEvery
# How often a step is sent that transient failures keep from being done, and the first pause between, which doubles.
ATTEMPTS = 4  # internal/session/fanout.attempts
FIRST_PAUSE_SECONDS = 0.01  # internal/session/fanout.firstPause
# What dropping a session that was made in vain may take.
ABANDON_SECONDS = 10.0  # client.abandonTimeout
# How many sessions are listed at once.
LISTED = 1000  # client.listed
MAX_REPLICAS = 8  # shard.MaxReplicas
MAX_STRIPES = 64  # shard.MaxStripes
SPLIT = 2048  # attention.SplitLen
MAX_POSITIONS = 1 << 40  # shard.MaxPositions
