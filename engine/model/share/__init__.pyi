from .shared_out import share_of_rank as share_of_rank
